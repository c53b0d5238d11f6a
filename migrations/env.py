"""Alembic's entry: this process's control database, and timeouts that keep a migration from blocking the service."""

from alembic import context
from sqlalchemy import text

from outbox import db, tables

# A migration that waits for a lock queues every claim behind it: better to fail and be run again.
LOCK_TIMEOUT = "4s"
STATEMENT_TIMEOUT = "60s"
# Two `migrate` at once (two containers of one deploy) must take turns: any constant will do.
MIGRATION_LOCK = 4_702_111


def run() -> None:
    """Apply what was asked for, in one transaction."""
    with db.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.configure(connection=connection, target_metadata=tables.metadata, compare_server_default=True)
        context.run_migrations()


run()
