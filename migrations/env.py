"""Alembic's entry: migrates this process's control database, with timeouts so that it does not block the service."""

from alembic import context
from sqlalchemy import text

from outbox import db, tables

# While a migration waits for a lock, every claim waits behind it: better to fail and be run again.
LOCK_TIMEOUT = "4s"
STATEMENT_TIMEOUT = "60s"
# Two `migrate` at once (two containers of one deploy) must take turns; the number itself has no meaning.
MIGRATION_LOCK = 4_702_111


def run() -> None:
    """Apply the requested migrations in one transaction."""
    with db.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.configure(connection=connection, target_metadata=tables.metadata, compare_server_default=True)
        context.run_migrations()


run()
