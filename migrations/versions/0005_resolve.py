"""Resolving stuck jobs: inspections that operators ask for, approvals by a second operator, forced re-drives."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "observations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("taken_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("observed_by", sa.Text(), nullable=True),
        sa.Column("found", sa.Text(), nullable=True),
        sa.Column("seen", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint(
            "found IN ('absent', 'same', 'different', 'unavailable', 'unobservable')",
            name="observations_found_known",
        ),
        sa.CheckConstraint(
            "(observed_at IS NULL) = (found IS NULL) AND (observed_at IS NULL) = (observed_by IS NULL)",
            name="observations_observed_is_told",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("observations_pkey")),
    )
    op.create_index("observations_of_job", "observations", ["job_id", "fence", "observed_at"], unique=False)
    op.create_index(
        "observations_open",
        "observations",
        ["job_id", "fence"],
        unique=True,
        postgresql_where=sa.text("observed_at IS NULL"),
    )
    op.create_table(
        "approvals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("proposed_by", sa.Text(), nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("action IN ('resolve', 'redrive')", name="approvals_action_known"),
        sa.CheckConstraint("(approved_at IS NULL) = (approved_by IS NULL)", name="approvals_approved_by_somebody"),
        sa.CheckConstraint("approved_by <> proposed_by", name="approvals_by_two"),
        sa.PrimaryKeyConstraint("id", name=op.f("approvals_pkey")),
    )
    op.create_index("approvals_once", "approvals", ["action", "job_id", "fence"], unique=True)
    op.add_column("outbox", sa.Column("forced_fence", sa.BigInteger(), nullable=True))
    op.create_check_constraint("outbox_forced_within_fence", "outbox", "forced_fence <= fence")


def downgrade() -> None:
    op.drop_constraint("outbox_forced_within_fence", "outbox", type_="check")
    op.drop_column("outbox", "forced_fence")
    op.drop_table("approvals")
    op.drop_table("observations")
