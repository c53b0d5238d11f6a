"""The indexes of lanes and quotas, made while the service works; each step may be done again after it failed."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OUTBOX = ("outbox_lanes", "outbox (backend, lane, available_at, id) WHERE state = 'pending' AND held_by IS NULL")
OUTBOX_BEFORE = ("outbox_pending", "outbox (backend, available_at, id) WHERE state = 'pending' AND held_by IS NULL")
RESOURCES = ("resources_live", "resources (tenant, status, backend) WHERE status <> 'deleted'")
RESOURCES_BEFORE = ("resources_live_of_tenant", "resources (tenant) WHERE status IN ('active', 'deleting')")


def _replace(before: tuple[str, str], after: tuple[str, str]) -> None:
    """Both exist for a while, so that no statement is ever without its index."""
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {after[0]}")  # one that failed to be made is there, and invalid
    op.execute(f"CREATE INDEX CONCURRENTLY {after[0]} ON {after[1]}")
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {before[0]}")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Nobody waits for these statements; they wait for transactions that are open.
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        op.execute("ALTER TABLE outbox VALIDATE CONSTRAINT outbox_lane_known")
        _replace(RESOURCES_BEFORE, RESOURCES)
        _replace(OUTBOX_BEFORE, OUTBOX)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        _replace(OUTBOX, OUTBOX_BEFORE)
        _replace(RESOURCES, RESOURCES_BEFORE)
