"""What the service's own role may do: enough for API, workers, command line and doctor, and not to rewrite history.

Migrations are run by another role, the owner of the tables, who may do anything.
"""

from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection, text

from outbox.errors import BadRequest, NotFound

# Rows of evidence are added, and never changed or removed. A table that is not named here is nobody's.
RIGHTS = {
    "resources": "SELECT, INSERT, UPDATE",
    "outbox": "SELECT, INSERT, UPDATE",
    "events": "SELECT, INSERT",
    "audit_checkpoints": "SELECT, INSERT",
    "audit_heads": "SELECT, INSERT",
    "tokens": "SELECT, INSERT, UPDATE",
    "breakers": "SELECT, INSERT, UPDATE, DELETE",
    "holds": "SELECT, INSERT, UPDATE",
    "brake_starts": "SELECT, INSERT, UPDATE, DELETE",
    "operations": "SELECT, INSERT, UPDATE",
    "operation_items": "SELECT, INSERT, UPDATE",
    "observations": "SELECT, INSERT, UPDATE, DELETE",
    "approvals": "SELECT, INSERT, UPDATE",
    "alembic_version": "SELECT",
}

# Whoever owns the schema may drop what is in it, whoever owns the database all of it. The owner of a database is
# a member of pg_database_owner, to whom the schema `public` belongs; a superuser is a member of all.
_POWERS = text("""
    SELECT EXISTS (SELECT FROM (
                          SELECT relowner FROM pg_class WHERE oid = ANY(CAST(CAST(:tables AS text[]) AS regclass[]))
                           UNION SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()
                           UNION SELECT datdba FROM pg_database WHERE datname = current_database()) AS owners (owner)
                    WHERE pg_has_role(pg_roles.oid, owner, 'MEMBER')) AS unbound
      FROM pg_roles WHERE rolname = :role""")


def make_role(db: Connection, role: str, password: str) -> None:
    """A role that may log in with that password; one that is there gets the password."""
    quoted = db.dialect.identifier_preparer.quote_identifier(role)
    there = db.execute(text("SELECT true FROM pg_roles WHERE rolname = :role"), {"role": role}).scalar_one_or_none()
    # Hashed before it is sent: the server's log may keep statements.
    secret = encrypt_password(password, role, algorithm="scram-sha-256", scope=db.connection.driver_connection)
    # Not text(): the colon in the secret would be a parameter.
    db.exec_driver_sql(f"{'ALTER' if there else 'CREATE'} ROLE {quoted} LOGIN PASSWORD '{secret}'")


def grant(db: Connection, role: str) -> None:
    """Give `role` what RIGHTS says, and take away what else it had; to be run again after each migration.

    Raises NotFound, and BadRequest for a role that no grant can hold: a superuser, or a member of an owner.
    """
    row = db.execute(_POWERS, {"role": role, "tables": list(RIGHTS)}).one_or_none()
    if row is None:
        raise NotFound(f"there is no role {role!r}; create it (LOGIN, with a password), then run this again")
    if row.unbound:
        raise BadRequest(
            f"role {role!r} is a superuser, or owns the tables, their schema or the database, itself or as a member: "
            "it could rewrite events whatever is granted"
        )
    quote = db.dialect.identifier_preparer.quote_identifier
    schema = quote(str(db.execute(text("SELECT current_schema()")).scalar_one()))
    db.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {quote(role)}")
    db.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {quote(role)}")
    for table, rights in RIGHTS.items():
        db.exec_driver_sql(f"GRANT {rights} ON {table} TO {quote(role)}")
