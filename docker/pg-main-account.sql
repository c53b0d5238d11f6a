-- docs/production.md, "The backends' service accounts". The password must not get into the server's log.
SET log_statement = none;
\getenv password BACKENDS_PASSWORD
CREATE ROLE deprovisioner_service LOGIN CREATEDB CREATEROLE PASSWORD :'password';
