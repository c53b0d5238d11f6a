"""Tables of reconciliations: how a backend and this database differ, and what a comparison reads meanwhile."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from outbox.states import Difference
from outbox.tables.metadata import metadata, one_of, timestamp

# A row for each backend: its last run, and what its last good run has read.
reconciliations = sa.Table(
    "reconciliations",
    metadata,
    sa.Column("backend", sa.Text, primary_key=True),
    # When a worker first served it: a run within the first hour would find nothing.
    timestamp("known_since", now=True),
    # The last run: its number, who made it, under which run of the server, its begin and its last sign of life. `error`
    # is why it failed.
    sa.Column("run", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("actor", sa.Text),
    sa.Column("incarnation", sa.Text),
    timestamp("begun_at"),
    timestamp("told_at"),
    sa.Column("error", sa.Text),
    # The last good run: its begin and end; how many marked objects and resources it compared; and how many objects
    # that no row knows it left aside, since other installations use that server too.
    timestamp("compared_at"),
    timestamp("ended_at"),
    sa.Column("objects", sa.BigInteger),
    sa.Column("resources", sa.BigInteger),
    sa.Column("others", sa.BigInteger),
)


def _object() -> "list[sa.Column[object]]":
    """The columns of an object as its server shows it."""
    return [
        sa.Column("names", JSONB, nullable=False),
        sa.Column("parts", ARRAY(sa.Text), nullable=False),
        # Why it cannot be adopted as it stands, or how it differs; empty where nothing speaks against it.
        sa.Column("why", sa.Text, nullable=False),
        # Each where it is known.
        sa.Column("size_bytes", sa.BigInteger),
        timestamp("created_at"),
        timestamp("last_used_at"),
    ]


# What a run has read on a backend, until its end.
reconciliation_objects = sa.Table(
    "reconciliation_objects",
    metadata,
    sa.Column("n", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("run", sa.BigInteger, nullable=False),
    # As the mark says it, NULL where the object has none; `generation` is NULL where that is no UUID.
    sa.Column("mark", sa.Text),
    sa.Column("generation", sa.Uuid),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("quarantined", sa.Boolean, nullable=False),
    sa.Column("contradictory", sa.Boolean, nullable=False),
    *_object(),
    sa.Index("reconciliation_objects_generation", "backend", "run", "generation"),
)

# What may be a finding, until its end: a single inspection decides about each.
reconciliation_items = sa.Table(
    "reconciliation_items",
    metadata,
    sa.Column("n", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("run", sa.BigInteger, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("generation", sa.Uuid),
    # The row, the version of it that was compared, and its manifest; NULL where no row knows the object.
    sa.Column("resource_id", sa.Uuid),
    sa.Column("version", sa.BigInteger),
    sa.Column("manifest", JSONB),
    *_object(),
    sa.Column("quarantined", sa.Boolean, nullable=False),
    sa.Column("contradictory", sa.Boolean, nullable=False),
    # Whether the inspection has confirmed it; NULL before, and where the row has changed meanwhile.
    sa.Column("stands", sa.Boolean),
    sa.CheckConstraint(one_of("code", Difference), name="reconciliation_items_code_known"),
    sa.Index("reconciliation_items_of_run", "backend", "run", "code", "key"),
)

# What differs. A finding keeps its id as long as it stands; `closed_at`: a later run did not find it any more, or an
# operator has adopted the object.
object_findings = sa.Table(
    "object_findings",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("resource_id", sa.Uuid),
    *_object(),
    timestamp("found_at", now=True),
    timestamp("seen_at", now=True),
    timestamp("closed_at"),
    # The resource that an operator has made of the object.
    sa.Column("adopted_as", sa.Uuid),
    sa.CheckConstraint(one_of("code", Difference), name="object_findings_code_known"),
    sa.CheckConstraint("adopted_as IS NULL OR closed_at IS NOT NULL", name="object_findings_adopted_is_closed"),
    sa.Index(
        "object_findings_open", "backend", "code", "key", unique=True, postgresql_where=sa.text("closed_at IS NULL")
    ),
    sa.Index("object_findings_listing", "id", postgresql_where=sa.text("closed_at IS NULL")),
)
