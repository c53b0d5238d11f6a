"""Recoveries after a rewind; and an object that is there again may be adopted again, though its resource was deleted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

LIVE = ("resources_generation_live", "UNIQUE INDEX", "resources (generation) WHERE status <> 'deleted'")
DELETED = ("resources_generation_deleted", "INDEX", "resources (generation) WHERE status = 'deleted'")
BEFORE = ("resources_generation", "UNIQUE INDEX", "resources (generation)")


def _replace(before: tuple[tuple[str, str, str], ...], after: tuple[tuple[str, str, str], ...]) -> None:
    """Both exist for a while, so that no two resources ever get the same object; each step may be done again."""
    with op.get_context().autocommit_block():
        # Nobody waits for these statements; they wait for transactions that are open.
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        for name, what, on in after:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # one that failed to be made is there, and invalid
            op.execute(f"CREATE {what.replace('INDEX', 'INDEX CONCURRENTLY')} {name} ON {on}")
        for name, _, _ in before:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute("SET statement_timeout = '60s'")  # as migrations/env.py has them, for what follows
        op.execute("SET lock_timeout = '4s'")


def _time(name: str, *, now: bool = False) -> "sa.Column[object]":
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()") if now else None, nullable=not now
    )


def upgrade() -> None:
    _replace((BEFORE,), (LIVE, DELETED))
    op.create_table(
        "recoveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("backend", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        _time("created_at", now=True),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("epoch_seen", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("surveyed", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("shared", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("errors", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("notes", postgresql.JSONB(), server_default="[]", nullable=False),
        sa.Column("counts", postgresql.JSONB(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("decisions", postgresql.JSONB(), nullable=True),
        sa.Column("without", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("tenant", sa.Text(), nullable=True),
        _time("revoke_before"),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        _time("begun_at"),
        _time("finished_at"),
        sa.CheckConstraint("(counts IS NULL) = (digest IS NULL)", name="recoveries_surveyed_has_digest"),
        sa.CheckConstraint(
            "(begun_at IS NULL) = (decisions IS NULL) AND (begun_at IS NULL) = (reason IS NULL)",
            name="recoveries_begun_has_decisions",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("recoveries_pkey")),
    )
    op.create_table(
        "recovery_items",
        sa.Column("recovery_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("class", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=True),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("refused", sa.Boolean(), nullable=True),
        sa.Column("said", sa.Text(), nullable=True),
        sa.CheckConstraint("decision IN ('confirm', 'cancel', 'leave')", name="recovery_items_decision_known"),
        sa.CheckConstraint("(decision IS NULL) = (refused IS NULL)", name="recovery_items_decided_is_told"),
        sa.PrimaryKeyConstraint("recovery_id", "class", "n", name=op.f("recovery_items_pkey")),
    )
    op.create_index(
        "recovery_items_waiting",
        "recovery_items",
        ["recovery_id", "class", "n"],
        postgresql_where=sa.text("decision IS NULL"),
    )
    op.create_table(
        "recovery_objects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("recovery_id", sa.BigInteger(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("generation", sa.Uuid(), nullable=True),
        sa.Column("names", postgresql.JSONB(), nullable=False),
        sa.Column("parts", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("quarantined", sa.Boolean(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("recovery_objects_pkey")),
    )
    op.create_index("recovery_objects_generation", "recovery_objects", ["recovery_id", "generation"])


def downgrade() -> None:
    op.drop_table("recovery_objects")
    op.drop_table("recovery_items")
    op.drop_table("recoveries")
    _replace((LIVE, DELETED), (BEFORE,))  # fails where an object was adopted again
