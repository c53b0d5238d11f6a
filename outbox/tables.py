"""Tables, indexes and CHECKs. Alembic's migrations create them; `alembic check` holds the two together."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.states import JobKind, JobState, ResourceStatus, StuckReason

metadata = sa.MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "fk": "%(table_name)s_%(column_0_name)s_fkey"},
)


def _timestamp(name: str, *, now: bool = False) -> "sa.Column[object]":
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=not now,
        server_default=sa.text("now()") if now else None,
    )


def _one_of(column: str, words: type) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"  # type: ignore[attr-defined]


resources = sa.Table(
    "resources",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default=ResourceStatus.PROVISIONING),
    sa.Column("protected", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("adopted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("generation", sa.Uuid, nullable=False),
    sa.Column("manifest", JSONB),
    sa.Column("credentials", sa.LargeBinary),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_digest", sa.Text),
    _timestamp("created_at", now=True),
    _timestamp("activated_at"),
    _timestamp("deleted_at"),
    _timestamp("purged_at"),
    _timestamp("expires_at"),
    sa.CheckConstraint(_one_of("status", ResourceStatus), name="resources_status_known"),
    sa.CheckConstraint("(status = 'deleted') = (purged_at IS NOT NULL)", name="resources_deleted_is_purged"),
    sa.CheckConstraint(
        "(status IN ('deleting', 'deleted')) = (deleted_at IS NOT NULL)", name="resources_deleting_since"
    ),
    sa.CheckConstraint(
        "status <> 'active' OR (activated_at IS NOT NULL AND manifest IS NOT NULL)",
        name="resources_active_has_manifest",
    ),
    sa.CheckConstraint("status <> 'deleted' OR credentials IS NULL", name="resources_deleted_has_no_credentials"),
    sa.Index("resources_listing", "tenant", sa.text("created_at DESC"), sa.text("id DESC")),
    sa.Index("resources_listing_all", sa.text("created_at DESC"), sa.text("id DESC")),
    # One object belongs to one resource, ever: whoever copies a manifest must not get a second hold on it.
    sa.Index("resources_generation", "generation", unique=True),
    sa.Index(
        "resources_expiring", "expires_at", postgresql_where=sa.text("status = 'active' AND expires_at IS NOT NULL")
    ),
    sa.Index(
        "resources_idempotency",
        "tenant",
        "idempotency_key",
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    # The export of proofs goes along it, page by page.
    sa.Index("resources_purged", "purged_at", "id", postgresql_where=sa.text("status = 'deleted'")),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default=JobState.PENDING),
    sa.Column("stuck_reason", sa.Text),
    sa.Column("resource_id", sa.Uuid, sa.ForeignKey("resources.id"), nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    _timestamp("available_at", now=True),
    sa.Column("claimed_by", sa.Text),
    _timestamp("lease_expires_at"),
    sa.Column("started_fence", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.Column("request_id", sa.Uuid, nullable=False),
    _timestamp("created_at", now=True),
    _timestamp("finished_at"),
    sa.CheckConstraint(_one_of("kind", JobKind), name="outbox_kind_known"),
    sa.CheckConstraint(_one_of("state", JobState), name="outbox_state_known"),
    sa.CheckConstraint(_one_of("stuck_reason", StuckReason), name="outbox_stuck_reason_known"),
    sa.CheckConstraint("(state = 'stuck') = (stuck_reason IS NOT NULL)", name="outbox_stuck_has_reason"),
    sa.CheckConstraint("(state = 'running') = (claimed_by IS NOT NULL)", name="outbox_running_has_claim"),
    sa.CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="outbox_running_has_lease"),
    sa.CheckConstraint(
        "(state IN ('succeeded', 'cancelled')) = (finished_at IS NOT NULL)", name="outbox_final_is_finished"
    ),
    sa.CheckConstraint("attempts >= 0 AND attempts <= fence", name="outbox_attempts_within_fence"),
    sa.CheckConstraint("started_fence <= fence", name="outbox_started_within_fence"),
    sa.CheckConstraint("max_attempts >= 1", name="outbox_max_attempts_positive"),
    # The promise "not two", held by the database itself.
    sa.Index(
        "outbox_one_deprovision",
        "resource_id",
        unique=True,
        postgresql_where=sa.text("kind = 'deprovision' AND state <> 'cancelled'"),
    ),
    sa.Index(
        "outbox_one_provision",
        "resource_id",
        unique=True,
        postgresql_where=sa.text("kind = 'provision' AND state <> 'cancelled'"),
    ),
    # In the claim's own order, so that a claim reads the rows it takes and no others.
    sa.Index("outbox_pending", "backend", "available_at", "id", postgresql_where=sa.text("state = 'pending'")),
    sa.Index("outbox_leases", "lease_expires_at", postgresql_where=sa.text("state = 'running'")),
    sa.Index("outbox_of_resource", "resource_id"),
    sa.Index("outbox_stuck", "id", postgresql_where=sa.text("state = 'stuck'")),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    # No foreign keys: history must never slow or block what it tells of.
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("detail", JSONB),
    # A chain for each resource, written by the trigger `events_chained`; one for all would make everybody wait.
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Index("events_of_job", "job_id", "id"),
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
    # The chain of checkpoints has no forks: of two made at once, one is.
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

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    _timestamp("created_at", now=True),
    _timestamp("revoked_at"),
    sa.CheckConstraint("role IN ('tenant', 'operator')", name="tokens_role_known"),
    sa.CheckConstraint("(role = 'tenant') = (tenant IS NOT NULL)", name="tokens_tenant_has_tenant"),
    sa.Index("tokens_digest", "digest", unique=True),
)

breakers = sa.Table(
    "breakers",
    metadata,
    sa.Column("backend", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    _timestamp("opened_at", now=True),
    sa.Column("retry_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
