"""What a recovery must know of is found by an index, which is made while the service works; it may be made again."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

OPERATIONS = """
    CREATE TRIGGER operations_begin_rewound BEFORE INSERT ON operations FOR EACH ROW
      EXECUTE FUNCTION deprovisioner_refuse_rewound()
"""


def upgrade() -> None:
    op.execute(OPERATIONS)
    with op.get_context().autocommit_block():
        # No request waits for these statements. They wait for open transactions.
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS events_acts")  # one that failed to be made is invalid
        op.execute("CREATE INDEX CONCURRENTLY events_acts ON events (id) WHERE job_id IS NULL")


def downgrade() -> None:
    op.execute("DROP TRIGGER operations_begin_rewound ON operations")
    with op.get_context().autocommit_block():
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS events_acts")
