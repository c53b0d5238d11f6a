"""The rights of the service's database role: enough for API, workers, commands and doctor, but not to rewrite history.

Another role runs the migrations: the owner of the tables, which may do anything.
"""

from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection, text

from outbox.errors import BadRequest, NotFound

# The columns that transitions change; the others say what is destroyed, where, and whose it is, and stay as they are.
_MOVES = {
    "resources": "status, protected, manifest, credentials, activated_at, deleted_at, purged_at, expires_at, purge_at, "
    "grace_seconds, snapshot",
    "outbox": "state, stuck_reason, fence, attempts, available_at, lane, claimed_by, lease_expires_at, started_fence, "
    "forced_fence, last_error, finished_at, held_by, step, started_step, progress",
}
# Rows of evidence are added, and never changed or removed. The role has no right on a table that is missing here.
RIGHTS = {
    "resources": f"SELECT, INSERT, UPDATE ({_MOVES['resources']})",
    "outbox": f"SELECT, INSERT, UPDATE ({_MOVES['outbox']})",
    "events": "SELECT, INSERT",
    "audit_checkpoints": "SELECT, INSERT",
    "audit_heads": "SELECT, INSERT",
    "installation": "SELECT, INSERT, UPDATE",
    "memories": "SELECT, INSERT, UPDATE, DELETE",
    "tokens": "SELECT, INSERT, UPDATE",
    "breakers": "SELECT, INSERT, UPDATE, DELETE",
    "backend_checks": "SELECT, INSERT, UPDATE",
    "holds": "SELECT, INSERT, UPDATE",
    "brake_starts": "SELECT, INSERT, UPDATE, DELETE",
    "operations": "SELECT, INSERT, UPDATE",
    "operation_items": "SELECT, INSERT, UPDATE",
    "adoptions": "SELECT, INSERT, UPDATE",
    "recoveries": "SELECT, INSERT, UPDATE",
    "recovery_items": "SELECT, INSERT, UPDATE, DELETE",
    "recovery_objects": "SELECT, INSERT, DELETE",
    "reconciliations": "SELECT, INSERT, UPDATE",
    "reconciliation_objects": "SELECT, INSERT, DELETE",
    "reconciliation_items": "SELECT, INSERT, UPDATE, DELETE",
    "object_findings": "SELECT, INSERT, UPDATE",
    "observations": "SELECT, INSERT, UPDATE, DELETE",
    "approvals": "SELECT, INSERT, UPDATE",
    "snapshots": "SELECT, INSERT, UPDATE",
    "login_attempts": "SELECT, INSERT, UPDATE, DELETE",
    "alembic_version": "SELECT",
}

# A schema's owner may drop everything in the schema, and a database's owner everything in the database. The owner of a
# database is a member of pg_database_owner, which owns the schema `public`; a superuser is a member of every role.
_POWERS = text("""
    SELECT EXISTS (SELECT FROM (
                          SELECT relowner FROM pg_class WHERE oid = ANY(CAST(CAST(:tables AS text[]) AS regclass[]))
                           UNION SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()
                           UNION SELECT datdba FROM pg_database WHERE datname = current_database()) AS owners (owner)
                    WHERE pg_has_role(pg_roles.oid, owner, 'MEMBER')) AS unbound
      FROM pg_roles WHERE rolname = :role""")


def make_role(db: Connection, role: str, password: str) -> None:
    """Create a role that logs in with this password, or give an existing role this password."""
    quoted = db.dialect.identifier_preparer.quote_identifier(role)
    there = db.execute(text("SELECT true FROM pg_roles WHERE rolname = :role"), {"role": role}).scalar_one_or_none()
    # Hashed here, because the server may log the statement.
    secret = encrypt_password(password, role, algorithm="scram-sha-256", scope=db.connection.driver_connection)
    # Not text(): it would take the colons in the hash for parameters.
    db.exec_driver_sql(f"{'ALTER' if there else 'CREATE'} ROLE {quoted} LOGIN PASSWORD '{secret}'")


def grant(db: Connection, role: str) -> None:
    """Give `role` the rights in RIGHTS and revoke all others; to be run again after each migration.

    Raises NotFound, and BadRequest for a role that no grant can limit: a superuser, an owner, or a member of one.
    """
    row = db.execute(_POWERS, {"role": role, "tables": list(RIGHTS)}).one_or_none()
    if row is None:
        raise NotFound(
            f"there is no role {role!r}; set DEPROVISIONER_SERVICE_PASSWORD, and this command makes the role, or make "
            "it yourself (LOGIN, with a password); then run this again"
        )
    if row.unbound:
        raise BadRequest(
            f"role {role!r} is a superuser, or owns the tables, their schema or the database, itself or as a member: "
            "it could rewrite events whatever is granted; use another role"
        )
    quote = db.dialect.identifier_preparer.quote_identifier
    schema = quote(str(db.execute(text("SELECT current_schema()")).scalar_one()))
    db.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {quote(role)}")
    db.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {quote(role)}")
    for table, rights in RIGHTS.items():
        db.exec_driver_sql(f"GRANT {rights} ON {table} TO {quote(role)}")
