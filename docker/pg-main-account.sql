-- docs/backends.md, "PostgreSQL". The password must not get into the server's log.
SET log_statement = none;
\getenv password BACKENDS_PASSWORD
CREATE ROLE deprovisioner_service LOGIN CREATEDB CREATEROLE PASSWORD :'password';
CREATE DATABASE deprovisioner_service OWNER deprovisioner_service;
REVOKE ALL ON DATABASE deprovisioner_service FROM PUBLIC;
REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres, template1 TO deprovisioner_service;
GRANT pg_use_reserved_connections TO deprovisioner_service WITH INHERIT TRUE;
