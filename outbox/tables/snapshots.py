"""What is kept of a resource that is being deleted: its final snapshots, and who still tries to log in."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.tables.metadata import metadata, timestamp

# A row is inserted before the first byte is stored. `verified_at`: it was restored, and equal to its frozen source.
# No foreign keys: a snapshot may outlive the rows of its resource and job.
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("location", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("detail", JSONB),
    timestamp("created_at", now=True),
    timestamp("verified_at"),
    timestamp("expires_at"),
    timestamp("removed_at"),
    sa.Index("snapshots_of_resource", "resource_id"),
    sa.Index("snapshots_of_job", "job_id", postgresql_where=sa.text("verified_at IS NOT NULL")),
    sa.Index("snapshots_expiring", "expires_at", postgresql_where=sa.text("removed_at IS NULL")),
)

# Who still tries to log in to what is in quarantine, as far as its server tells.
login_attempts = sa.Table(
    "login_attempts",
    metadata,
    sa.Column("resource_id", sa.Uuid, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    timestamp("last_at", now=True),
    timestamp("looked_at", now=True),
    sa.Column("addresses", JSONB, nullable=False),
    # The attempts of each group that may still grow on the server, as far as they are counted.
    sa.Column("groups", JSONB, nullable=False),
)
