"""Tables of recoveries: what a survey found, and what was decided about it."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from outbox.states import Decision
from outbox.tables.metadata import metadata, one_of, timestamp

recoveries = sa.Table(
    "recoveries",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    # The one backend that went back in time; NULL where the control database did.
    sa.Column("backend", sa.Text),
    sa.Column("actor", sa.Text, nullable=False),
    timestamp("created_at", now=True),
    # The run of the server under which the survey was made.
    sa.Column("incarnation", sa.Text, nullable=False),
    # Why the database is rewound, by what the places remember; NULL where they say nothing of it.
    sa.Column("verdict", sa.Text),
    # The latest epoch that a place remembers; 0 where none does.
    sa.Column("epoch_seen", sa.BigInteger, nullable=False, server_default="0"),
    # The backends whose objects were read; of these, the ones that other installations use too; and why the others
    # could not be read.
    sa.Column("surveyed", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("shared", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("errors", JSONB, nullable=False, server_default="{}"),
    # What the places have noted, and this database lacks.
    sa.Column("notes", JSONB, nullable=False, server_default="[]"),
    # The number of items by class. NULL until the survey has ended.
    sa.Column("counts", JSONB),
    sa.Column("digest", sa.Text),
    # What a person decided, class by class; the backends that may be missing; and what else the command said.
    sa.Column("decisions", JSONB),
    sa.Column("without", ARRAY(sa.Text)),
    sa.Column("tenant", sa.Text),
    timestamp("revoke_before"),
    sa.Column("reason", sa.Text),
    sa.Column("decided_by", sa.Text),
    timestamp("begun_at"),
    timestamp("finished_at"),
    sa.CheckConstraint("(counts IS NULL) = (digest IS NULL)", name="recoveries_surveyed_has_digest"),
    sa.CheckConstraint(
        "(begun_at IS NULL) = (decisions IS NULL) AND (begun_at IS NULL) = (reason IS NULL)",
        name="recoveries_begun_has_decisions",
    ),
)

recovery_items = sa.Table(
    "recovery_items",
    metadata,
    # No foreign keys, as for the items of operations.
    sa.Column("recovery_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("class", sa.Text, primary_key=True),
    sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=False),
    # What the digest is made of: what the item is, and the state in which it was found.
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("backend", sa.Text),
    sa.Column("job_id", sa.BigInteger),
    sa.Column("fence", sa.BigInteger),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("detail", JSONB, nullable=False),
    # NULL while the item waits. `refused` says why in `said`.
    sa.Column("decision", sa.Text),
    sa.Column("refused", sa.Boolean),
    sa.Column("said", sa.Text),
    sa.CheckConstraint(one_of("decision", Decision), name="recovery_items_decision_known"),
    sa.CheckConstraint("(decision IS NULL) = (refused IS NULL)", name="recovery_items_decided_is_told"),
    sa.Index("recovery_items_waiting", "recovery_id", "class", "n", postgresql_where=sa.text("decision IS NULL")),
)

# What bears a mark of ours on a backend, while the survey that read it is the last one.
recovery_objects = sa.Table(
    "recovery_objects",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("recovery_id", sa.BigInteger, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    # As the mark says it; `generation` is NULL where that is no UUID.
    sa.Column("mark", sa.Text, nullable=False),
    sa.Column("generation", sa.Uuid),
    sa.Column("names", JSONB, nullable=False),
    sa.Column("parts", ARRAY(sa.Text), nullable=False),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("quarantined", sa.Boolean, nullable=False),
    # Why it cannot be adopted as it stands; empty where nothing speaks against it.
    sa.Column("why", sa.Text, nullable=False),
    sa.Index("recovery_objects_generation", "recovery_id", "generation"),
)
