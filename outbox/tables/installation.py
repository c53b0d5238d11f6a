"""Who this installation is, and what places outside the control database remember of it."""

import sqlalchemy as sa

from outbox.tables.metadata import metadata, timestamp

# One row, made when it is first needed: a copy of an empty database must not take its identity along.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("id", sa.Uuid, nullable=False, server_default=sa.text("gen_random_uuid()")),
    # Raised by each recovery, so that what an older epoch has left tells nothing about this one.
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
    # The server and the database that the last comparison saw.
    sa.Column("system_identifier", sa.Text),
    sa.Column("database_oid", sa.BigInteger),
    sa.Column("timeline", sa.BigInteger),
    # The incarnation that was compared with the places; NULL before the first comparison.
    sa.Column("compared_under", sa.Text),
    timestamp("announced_at"),
    sa.CheckConstraint("one", name="installation_is_one"),
)

# A row a place: a backend's name, or `(broker)`.
memories = sa.Table(
    "memories",
    metadata,
    sa.Column("place", sa.Text, primary_key=True),
    # What a worker last wrote there, by this database's word.
    sa.Column("epoch", sa.BigInteger),
    sa.Column("event", sa.BigInteger),
    timestamp("remembered_at"),
    # The identity of the server that it was written to, where its kind tells.
    sa.Column("server", sa.Text),
    # Workers start nothing at a backend that was not compared under this incarnation.
    sa.Column("compared_under", sa.Text),
    timestamp("compared_at"),
    # The place remembers less than was written there: since when, and what it said.
    timestamp("behind_since"),
    sa.Column("note", sa.Text),
)
