"""Operations: bulk work that operators begin and workers advance, and its items."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FINAL = """
    CREATE TRIGGER operations_finished_is_final BEFORE UPDATE ON operations FOR EACH ROW
      WHEN (OLD.finished_at IS NOT NULL)
      EXECUTE FUNCTION deprovisioner_forbid('a finished operation is final')
"""


def upgrade() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Text(),
            sa.Computed(
                "CASE WHEN finished_at IS NULL THEN 'running' WHEN error IS NULL THEN 'succeeded' ELSE 'stopped' END",
                persisted=True,
            ),
            nullable=True,
        ),
        sa.Column("filter", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("rate", sa.Integer(), nullable=True),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('redrive', 'offboard')", name="operations_kind_known"),
        sa.CheckConstraint("(kind = 'redrive') = (rate IS NOT NULL)", name="operations_redrive_has_rate"),
        sa.CheckConstraint("rate BETWEEN 1 AND 1000", name="operations_rate_bounded"),
        sa.PrimaryKeyConstraint("id", name=op.f("operations_pkey")),
    )
    op.create_index(
        "operations_once",
        "operations",
        ["kind", "digest"],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(
        "operations_running", "operations", ["next_at"], unique=False, postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_table(
        "operation_items",
        sa.Column("operation_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=True),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("canary", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('redriven', 'failed', 'stopped', 'enqueued', 'protected', 'skipped')",
            name="operation_items_outcome_known",
        ),
        sa.CheckConstraint(
            "(fence IS NULL) = (resource_id IS NOT NULL) AND (fence IS NULL OR job_id IS NOT NULL)",
            name="operation_items_one_target",
        ),
        sa.PrimaryKeyConstraint("operation_id", "n", name=op.f("operation_items_pkey")),
    )
    op.create_index(
        "operation_items_waiting",
        "operation_items",
        ["operation_id", sa.literal_column("canary DESC"), "n"],
        unique=False,
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_index(
        "operation_items_canaries",
        "operation_items",
        ["operation_id", "backend"],
        unique=False,
        postgresql_where=sa.text("canary"),
    )
    op.execute(FINAL)


def downgrade() -> None:
    op.drop_index("operation_items_canaries", table_name="operation_items", postgresql_where=sa.text("canary"))
    op.drop_index("operation_items_waiting", table_name="operation_items", postgresql_where=sa.text("outcome IS NULL"))
    op.drop_table("operation_items")
    op.drop_index("operations_once", table_name="operations", postgresql_where=sa.text("finished_at IS NULL"))
    op.drop_index("operations_running", table_name="operations", postgresql_where=sa.text("finished_at IS NULL"))
    op.drop_table("operations")
