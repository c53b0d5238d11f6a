"""Reconciliations: how each backend and this database differ."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

CODES = "code IN ('unknown', 'survives', 'missing', 'differs', 'unmarked')"


def _time(name: str, *, now: bool = False) -> "sa.Column[object]":
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()") if now else None, nullable=not now
    )


def _object() -> "list[sa.Column[object]]":
    return [
        sa.Column("names", postgresql.JSONB(), nullable=False),
        sa.Column("parts", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        _time("created_at"),
        _time("last_used_at"),
    ]


def upgrade() -> None:
    op.create_table(
        "reconciliations",
        sa.Column("backend", sa.Text(), nullable=False),
        _time("known_since", now=True),
        sa.Column("run", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("incarnation", sa.Text(), nullable=True),
        _time("begun_at"),
        _time("told_at"),
        sa.Column("error", sa.Text(), nullable=True),
        _time("compared_at"),
        _time("ended_at"),
        sa.Column("objects", sa.BigInteger(), nullable=True),
        sa.Column("resources", sa.BigInteger(), nullable=True),
        sa.Column("others", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("backend", name=op.f("reconciliations_pkey")),
    )
    op.create_table(
        "reconciliation_objects",
        sa.Column("n", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("generation", sa.Uuid(), nullable=True),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("quarantined", sa.Boolean(), nullable=False),
        sa.Column("contradictory", sa.Boolean(), nullable=False),
        *_object(),
        sa.PrimaryKeyConstraint("n", name=op.f("reconciliation_objects_pkey")),
    )
    op.create_index("reconciliation_objects_generation", "reconciliation_objects", ["backend", "run", "generation"])
    op.create_table(
        "reconciliation_items",
        sa.Column("n", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("generation", sa.Uuid(), nullable=True),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("manifest", postgresql.JSONB(), nullable=True),
        *_object(),
        sa.Column("quarantined", sa.Boolean(), nullable=False),
        sa.Column("contradictory", sa.Boolean(), nullable=False),
        sa.Column("stands", sa.Boolean(), nullable=True),
        sa.CheckConstraint(CODES, name="reconciliation_items_code_known"),
        sa.PrimaryKeyConstraint("n", name=op.f("reconciliation_items_pkey")),
    )
    op.create_index("reconciliation_items_of_run", "reconciliation_items", ["backend", "run", "code", "key"])
    op.create_table(
        "object_findings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        *_object(),
        _time("found_at", now=True),
        _time("seen_at", now=True),
        _time("closed_at"),
        sa.Column("adopted_as", sa.Uuid(), nullable=True),
        sa.CheckConstraint(CODES, name="object_findings_code_known"),
        sa.CheckConstraint("adopted_as IS NULL OR closed_at IS NOT NULL", name="object_findings_adopted_is_closed"),
        sa.PrimaryKeyConstraint("id", name=op.f("object_findings_pkey")),
    )
    op.create_index(
        "object_findings_open",
        "object_findings",
        ["backend", "code", "key"],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index("object_findings_listing", "object_findings", ["id"], postgresql_where=sa.text("closed_at IS NULL"))


def downgrade() -> None:
    op.drop_table("object_findings")
    op.drop_table("reconciliation_items")
    op.drop_table("reconciliation_objects")
    op.drop_table("reconciliations")
