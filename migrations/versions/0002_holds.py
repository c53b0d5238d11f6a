"""Holds and brakes, which stop jobs from starting; and the column for the hold that a job waits for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TRIGGERS = (
    """
    CREATE TRIGGER holds_released_is_final BEFORE UPDATE ON holds FOR EACH ROW
      WHEN (OLD.released_at IS NOT NULL)
      EXECUTE FUNCTION deprovisioner_forbid('a released hold is final')
    """,
    """
    CREATE TRIGGER holds_are_kept BEFORE DELETE OR TRUNCATE ON holds FOR EACH STATEMENT
      EXECUTE FUNCTION deprovisioner_forbid('holds are kept: they tell who stopped what, and why')
    """,
)


def upgrade() -> None:
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_by", sa.Text(), nullable=True),
        sa.Column("release_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("scope IN ('global', 'backend', 'tenant', 'kind')", name="holds_scope_known"),
        sa.CheckConstraint("cause IN ('operator', 'brake')", name="holds_cause_known"),
        sa.CheckConstraint("(scope = 'global') = (subject IS NULL)", name="holds_scope_has_subject"),
        sa.CheckConstraint(
            "(released_at IS NULL) = (released_by IS NULL) AND (released_at IS NULL) = (release_reason IS NULL)",
            name="holds_release_has_reason",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("holds_pkey")),
    )
    op.create_index(
        "holds_in_force", "holds", ["scope", "subject"], unique=False, postgresql_where=sa.text("released_at IS NULL")
    )
    op.create_index(
        "holds_one_brake",
        "holds",
        ["scope", "subject"],
        unique=True,
        postgresql_where=sa.text("cause = 'brake' AND released_at IS NULL"),
    )
    op.create_index(
        "holds_brakes_released",
        "holds",
        ["scope", "subject", "released_at"],
        unique=False,
        postgresql_where=sa.text("cause = 'brake'"),
    )
    op.create_table(
        "brake_starts",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("scope", "subject", "resource_id", name=op.f("brake_starts_pkey")),
    )
    op.create_index("brake_starts_in_window", "brake_starts", ["scope", "subject", "at"], unique=False)
    op.create_index(
        "resources_live_of_backend",
        "resources",
        ["backend"],
        unique=False,
        postgresql_where=sa.text("status IN ('active', 'deleting')"),
    )
    op.create_index(
        "resources_live_of_tenant",
        "resources",
        ["tenant"],
        unique=False,
        postgresql_where=sa.text("status IN ('active', 'deleting')"),
    )
    op.add_column("outbox", sa.Column("held_by", sa.BigInteger(), nullable=True))
    op.create_check_constraint("outbox_held_is_pending", "outbox", "held_by IS NULL OR state = 'pending'")
    op.create_index("outbox_held", "outbox", ["held_by"], unique=False, postgresql_where=sa.text("held_by IS NOT NULL"))
    op.drop_index("outbox_pending", table_name="outbox", postgresql_where=sa.text("state = 'pending'"))
    op.create_index(
        "outbox_pending",
        "outbox",
        ["backend", "available_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND held_by IS NULL"),
    )
    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_index(
        "outbox_pending", table_name="outbox", postgresql_where=sa.text("state = 'pending' AND held_by IS NULL")
    )
    op.create_index(
        "outbox_pending",
        "outbox",
        ["backend", "available_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index("outbox_held", table_name="outbox", postgresql_where=sa.text("held_by IS NOT NULL"))
    op.drop_constraint("outbox_held_is_pending", "outbox", type_="check")
    op.drop_column("outbox", "held_by")
    for index in ("resources_live_of_tenant", "resources_live_of_backend"):
        op.drop_index(index, table_name="resources", postgresql_where=sa.text("status IN ('active', 'deleting')"))
    op.drop_table("brake_starts")
    op.drop_table("holds")
