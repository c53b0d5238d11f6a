"""Tables, indexes and CHECKs. Alembic's migrations create them; `alembic check` holds the two together."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.states import (
    Found,
    HoldCause,
    HoldScope,
    ItemOutcome,
    JobKind,
    JobState,
    OperationKind,
    ResourceStatus,
    StuckReason,
)

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
    # What a brake's percentage is of.
    sa.Index("resources_live_of_backend", "backend", postgresql_where=sa.text("status IN ('active', 'deleting')")),
    sa.Index("resources_live_of_tenant", "tenant", postgresql_where=sa.text("status IN ('active', 'deleting')")),
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
    sa.Column("forced_fence", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.Column("request_id", sa.Uuid, nullable=False),
    _timestamp("created_at", now=True),
    _timestamp("finished_at"),
    # The hold that `start` met: the job waits for its release, out of the claims' way.
    sa.Column("held_by", sa.BigInteger),
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
    sa.CheckConstraint("forced_fence <= fence", name="outbox_forced_within_fence"),
    sa.CheckConstraint("max_attempts >= 1", name="outbox_max_attempts_positive"),
    sa.CheckConstraint("held_by IS NULL OR state = 'pending'", name="outbox_held_is_pending"),
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
    sa.Index(
        "outbox_pending",
        "backend",
        "available_at",
        "id",
        postgresql_where=sa.text("state = 'pending' AND held_by IS NULL"),
    ),
    sa.Index("outbox_held", "held_by", postgresql_where=sa.text("held_by IS NOT NULL")),
    sa.Index("outbox_leases", "lease_expires_at", postgresql_where=sa.text("state = 'running'")),
    sa.Index("outbox_of_resource", "resource_id"),
    sa.Index("outbox_stuck", "id", postgresql_where=sa.text("state = 'stuck'")),
    # For the pages of a listing that asks for what is rare: common things the primary key finds at once.
    sa.Index("outbox_of_backend", "backend", "id"),
    sa.Index("outbox_age", "created_at", postgresql_using="brin"),  # ages stand in the table nearly in order
    sa.Index("outbox_failed", "id", postgresql_where=sa.text("last_error IS NOT NULL")),
    sa.Index("outbox_cancelled", "id", postgresql_where=sa.text("state = 'cancelled'")),
    sa.Index("outbox_restores", "id", postgresql_where=sa.text("kind = 'restore'")),
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
    _timestamp("created_at", now=True),
    _timestamp("next_at", now=True),
    _timestamp("finished_at"),
    sa.CheckConstraint(_one_of("kind", OperationKind), name="operations_kind_known"),
    sa.CheckConstraint("(kind = 'redrive') = (rate IS NOT NULL)", name="operations_redrive_has_rate"),
    sa.CheckConstraint("rate BETWEEN 1 AND 1000", name="operations_rate_bounded"),
    sa.Index("operations_running", "next_at", postgresql_where=sa.text("finished_at IS NULL")),
    # A double click begins one: two would each send a canary of their own.
    sa.Index("operations_once", "kind", "digest", unique=True, postgresql_where=sa.text("finished_at IS NULL")),
)

operation_items = sa.Table(
    "operation_items",
    metadata,
    # No foreign keys: checked one by one, those of 100,000 items would take longer than the rest.
    sa.Column("operation_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("backend", sa.Text, nullable=False),
    # What is meant: a job at the fence it was listed with, or a resource.
    sa.Column("job_id", sa.BigInteger),
    sa.Column("fence", sa.BigInteger),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("canary", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("outcome", sa.Text),
    sa.CheckConstraint(_one_of("outcome", ItemOutcome), name="operation_items_outcome_known"),
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

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("subject", sa.Text),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    _timestamp("created_at", now=True),
    _timestamp("released_at"),
    sa.Column("released_by", sa.Text),
    sa.Column("release_reason", sa.Text),
    sa.CheckConstraint(_one_of("scope", HoldScope), name="holds_scope_known"),
    sa.CheckConstraint(_one_of("cause", HoldCause), name="holds_cause_known"),
    sa.CheckConstraint("(scope = 'global') = (subject IS NULL)", name="holds_scope_has_subject"),
    sa.CheckConstraint(
        "(released_at IS NULL) = (released_by IS NULL) AND (released_at IS NULL) = (release_reason IS NULL)",
        name="holds_release_has_reason",
    ),
    sa.Index("holds_in_force", "scope", "subject", postgresql_where=sa.text("released_at IS NULL")),
    # Many workers hit one brake at once: they engage one hold.
    sa.Index(
        "holds_one_brake",
        "scope",
        "subject",
        unique=True,
        postgresql_where=sa.text("cause = 'brake' AND released_at IS NULL"),
    ),
    sa.Index("holds_brakes_released", "scope", "subject", "released_at", postgresql_where=sa.text("cause = 'brake'")),
)

# One row a teardown that was started, for each brake over it; a resource counts once, however often it is tried.
brake_starts = sa.Table(
    "brake_starts",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("resource_id", sa.Uuid, primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Index("brake_starts_in_window", "scope", "subject", "at"),
)

observations = sa.Table(
    "observations",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    # No foreign key, here and in approvals: evidence outlives the row it is about.
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    _timestamp("asked_at", now=True),
    _timestamp("taken_until"),
    _timestamp("observed_at"),
    sa.Column("observed_by", sa.Text),
    sa.Column("found", sa.Text),
    sa.Column("seen", JSONB),
    sa.CheckConstraint(_one_of("found", Found), name="observations_found_known"),
    sa.CheckConstraint(
        "(observed_at IS NULL) = (found IS NULL) AND (observed_at IS NULL) = (observed_by IS NULL)",
        name="observations_observed_is_told",
    ),
    sa.Index("observations_of_job", "job_id", "fence", "observed_at"),
    sa.Index("observations_open", "job_id", "fence", unique=True, postgresql_where=sa.text("observed_at IS NULL")),
)

approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("job_id", sa.BigInteger, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("proposed_by", sa.Text, nullable=False),
    _timestamp("proposed_at", now=True),
    sa.Column("approved_by", sa.Text),
    _timestamp("approved_at"),
    sa.CheckConstraint("action IN ('resolve', 'redrive')", name="approvals_action_known"),
    sa.CheckConstraint("(approved_at IS NULL) = (approved_by IS NULL)", name="approvals_approved_by_somebody"),
    # Four eyes, held by the database itself.
    sa.CheckConstraint("approved_by <> proposed_by", name="approvals_by_two"),
    sa.Index("approvals_once", "action", "job_id", "fence", unique=True),
)
