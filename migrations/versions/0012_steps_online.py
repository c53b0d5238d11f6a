"""What revision 0011 added is validated, and restores and quarantines get their indexes, while the service works; each may be done again."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

VALIDATED = {
    "outbox": (
        "outbox_lane_known",
        "outbox_stuck_reason_known",
        "outbox_step_known",
        "outbox_started_step_known",
        "outbox_step_of_teardown",
        "outbox_started_step_acts",
    ),
    "resources": (
        "resources_status_known",
        "resources_purge_is_deleting",
        "resources_grace_positive",
        "resources_snapshot_known",
    ),
    "approvals": ("approvals_action_known",),
    "operations": ("operations_kind_known",),
    "operation_items": ("operation_items_outcome_known",),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Nobody waits for these statements; they wait for transactions that are open.
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        for table, names in VALIDATED.items():
            for name in names:
                op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS outbox_one_restore")  # one that failed to be made is invalid
        op.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY outbox_one_restore ON outbox (resource_id)"
            " WHERE kind = 'restore' AND state NOT IN ('succeeded', 'cancelled')"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS outbox_quarantined")
        op.execute(
            "CREATE INDEX CONCURRENTLY outbox_quarantined ON outbox (backend, id)"
            " WHERE step IN ('snapshot', 'wait') AND finished_at IS NULL"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS outbox_one_restore")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS outbox_quarantined")
