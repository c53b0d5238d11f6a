"""Tables of bulk work: operations and their items."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.states import (
    ItemOutcome,
    OperationKind,
)
from outbox.tables.metadata import metadata, one_of, timestamp

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column(
        "state",
        sa.Text,
        sa.Computed(
            "CASE WHEN finished_at IS NULL THEN 'running' WHEN error IS NULL THEN 'succeeded' ELSE 'stopped' END",
            persisted=True,
        ),
    ),
    sa.Column("filter", JSONB, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("rate", sa.Integer),
    sa.Column("total", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("error", sa.Text),
    timestamp("created_at", now=True),
    timestamp("next_at", now=True),
    timestamp("finished_at"),
    sa.CheckConstraint(one_of("kind", OperationKind), name="operations_kind_known"),
    sa.CheckConstraint("(kind IN ('redrive', 'adopt')) = (rate IS NOT NULL)", name="operations_redrive_has_rate"),
    sa.CheckConstraint("rate BETWEEN 1 AND 1000", name="operations_rate_bounded"),
    sa.Index("operations_running", "next_at", postgresql_where=sa.text("finished_at IS NULL")),
    # A double click begins one operation: two would each re-drive a canary of their own.
    sa.Index("operations_once", "kind", "digest", unique=True, postgresql_where=sa.text("finished_at IS NULL")),
)

operation_items = sa.Table(
    "operation_items",
    metadata,
    # No foreign keys: to check those of 100,000 items one by one would take longer than all else.
    sa.Column("operation_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("backend", sa.Text, nullable=False),
    # The target: a job at the fence that it had in the preview, or a resource.
    sa.Column("job_id", sa.BigInteger),
    sa.Column("fence", sa.BigInteger),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("canary", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("outcome", sa.Text),
    sa.CheckConstraint(one_of("outcome", ItemOutcome), name="operation_items_outcome_known"),
    sa.CheckConstraint(
        "(fence IS NULL) = (resource_id IS NOT NULL) AND (fence IS NULL OR job_id IS NOT NULL)",
        name="operation_items_one_target",
    ),
    sa.Index(
        "operation_items_waiting",
        "operation_id",
        sa.text("canary DESC"),
        "n",
        postgresql_where=sa.text("outcome IS NULL"),
    ),
    sa.Index("operation_items_canaries", "operation_id", "backend", postgresql_where=sa.text("canary")),
)

adoptions = sa.Table(
    "adoptions",
    metadata,
    # An item of a preview: what is asked for, and what a worker found; no findings mean that it can be adopted.
    sa.Column("operation_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("asked", JSONB, nullable=False),
    timestamp("taken_until"),
    timestamp("inspected_at"),
    sa.Column("inspected_by", sa.Text),
    sa.Column("findings", JSONB),
    sa.Index("adoptions_waiting", "operation_id", "n", postgresql_where=sa.text("inspected_at IS NULL")),
)
