"""Append-only tables: events, and the checkpoints over their chains."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.tables.metadata import metadata

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    # No foreign keys: the evidence must never slow down or block a change of the rows that it is about.
    # NULL for an act that is no job's.
    sa.Column("job_id", sa.BigInteger),
    # The installation's id for an act that is no resource's.
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("detail", JSONB),
    # A chain for each resource, written by the trigger `events_chained`; one chain for all would serialize all commits.
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Index("events_of_job", "job_id", "id"),
    # For the acts, which are few: what a recovery must know of, and `audit acts`.
    sa.Index("events_acts", "id", postgresql_where=sa.text("job_id IS NULL")),
    sa.Index("events_chain", "resource_id", "seq", unique=True),
)

audit_checkpoints = sa.Table(
    "audit_checkpoints",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("events_from", sa.BigInteger, nullable=False),
    sa.Column("events_to", sa.BigInteger, nullable=False),
    sa.Column("heads", sa.BigInteger, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    # The chain of checkpoints has no forks: of two made at once, only one is inserted.
    sa.Index("audit_checkpoints_previous", "previous", unique=True),
)

audit_heads = sa.Table(
    "audit_heads",
    metadata,
    sa.Column("checkpoint_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("resource_id", sa.Uuid, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Index("audit_heads_of_resource", "resource_id", "seq"),
)
