"""Tables that control workers and operators: tokens, breakers, holds, brakes, observations, approvals."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.states import ForcedAction, Found, HoldCause, HoldScope, TokenRole
from outbox.tables.metadata import metadata, one_of, timestamp

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    timestamp("created_at", now=True),
    timestamp("revoked_at"),
    sa.CheckConstraint(one_of("role", TokenRole), name="tokens_role_known"),
    sa.CheckConstraint("(role = 'tenant') = (tenant IS NOT NULL)", name="tokens_tenant_has_tenant"),
    sa.Index("tokens_digest", "digest", unique=True),
)

breakers = sa.Table(
    "breakers",
    metadata,
    sa.Column("backend", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    timestamp("opened_at", now=True),
    sa.Column("retry_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

# What a worker found when it last checked a backend; `error` is why it could not ask.
backend_checks = sa.Table(
    "backend_checks",
    metadata,
    sa.Column("backend", sa.Text, primary_key=True),
    timestamp("checked_at", now=True),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("findings", JSONB, nullable=False),
    sa.Column("error", sa.Text),
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
    timestamp("created_at", now=True),
    timestamp("released_at"),
    sa.Column("released_by", sa.Text),
    sa.Column("release_reason", sa.Text),
    sa.CheckConstraint(one_of("scope", HoldScope), name="holds_scope_known"),
    sa.CheckConstraint(one_of("cause", HoldCause), name="holds_cause_known"),
    sa.CheckConstraint("(scope = 'global') = (subject IS NULL)", name="holds_scope_has_subject"),
    sa.CheckConstraint(
        "(released_at IS NULL) = (released_by IS NULL) AND (released_at IS NULL) = (release_reason IS NULL)",
        name="holds_release_has_reason",
    ),
    sa.Index("holds_in_force", "scope", "subject", postgresql_where=sa.text("released_at IS NULL")),
    # When many workers hit one brake at once, they engage one hold.
    sa.Index(
        "holds_one_brake",
        "scope",
        "subject",
        unique=True,
        postgresql_where=sa.text("cause = 'brake' AND released_at IS NULL"),
    ),
    # Likewise for workers that notice a rewind.
    sa.Index(
        "holds_one_rewound",
        "cause",
        unique=True,
        postgresql_where=sa.text("cause = 'rewound' AND released_at IS NULL"),
    ),
    # A backend is rebound once at a time, and is retired once.
    sa.Index(
        "holds_one_of_backend",
        "cause",
        "subject",
        unique=True,
        postgresql_where=sa.text("cause IN ('rebind', 'retired') AND released_at IS NULL"),
    ),
    sa.Index("holds_brakes_released", "scope", "subject", "released_at", postgresql_where=sa.text("cause = 'brake'")),
)

# A row for each started teardown and each brake over it; a resource counts once, however many attempts there are.
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
    timestamp("asked_at", now=True),
    timestamp("taken_until"),
    timestamp("observed_at"),
    sa.Column("observed_by", sa.Text),
    sa.Column("found", sa.Text),
    sa.Column("seen", JSONB),
    sa.CheckConstraint(one_of("found", Found), name="observations_found_known"),
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
    timestamp("proposed_at", now=True),
    sa.Column("approved_by", sa.Text),
    timestamp("approved_at"),
    sa.CheckConstraint(one_of("action", ForcedAction), name="approvals_action_known"),
    sa.CheckConstraint("(approved_at IS NULL) = (approved_by IS NULL)", name="approvals_approved_by_somebody"),
    # Two different operators, enforced by the database itself.
    sa.CheckConstraint("approved_by <> proposed_by", name="approvals_by_two"),
    sa.Index("approvals_once", "action", "job_id", "fence", unique=True),
)
