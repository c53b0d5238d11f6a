"""The outbox: one row for each job."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.states import (
    JobKind,
    JobState,
    Step,
    StuckReason,
)
from outbox.tables.metadata import metadata, one_of, timestamp

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
    timestamp("available_at", now=True),
    # A trigger sets it (revision 0008); claims begin with lane -1, which restores have alone.
    sa.Column("lane", sa.SmallInteger, nullable=False, server_default="1"),
    sa.Column("claimed_by", sa.Text),
    timestamp("lease_expires_at"),
    sa.Column("started_fence", sa.BigInteger),
    sa.Column("forced_fence", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.Column("request_id", sa.Uuid, nullable=False),
    timestamp("created_at", now=True),
    timestamp("finished_at"),
    # The hold for which `start` refused the job: claims leave the job out until the hold is released.
    sa.Column("held_by", sa.BigInteger),
    # A teardown's next step, and the one that it last started. NULL for other jobs, and in rows from before revision
    # 0011, which know one step.
    sa.Column("step", sa.Text),
    sa.Column("started_step", sa.Text),
    # Whether the teardown destroys nothing before it has a snapshot that was seen to restore.
    sa.Column("needs_snapshot", sa.Boolean, nullable=False, server_default=sa.false()),
    # How far the verb of an attempt has come, as its worker last told: `{fence, done, total, what}`.
    sa.Column("progress", JSONB),
    sa.CheckConstraint(one_of("kind", JobKind), name="outbox_kind_known"),
    sa.CheckConstraint(one_of("state", JobState), name="outbox_state_known"),
    sa.CheckConstraint(one_of("stuck_reason", StuckReason), name="outbox_stuck_reason_known"),
    sa.CheckConstraint("(state = 'stuck') = (stuck_reason IS NOT NULL)", name="outbox_stuck_has_reason"),
    sa.CheckConstraint("(state = 'running') = (claimed_by IS NOT NULL)", name="outbox_running_has_claim"),
    sa.CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="outbox_running_has_lease"),
    sa.CheckConstraint(
        "(state IN ('succeeded', 'cancelled', 'abandoned')) = (finished_at IS NOT NULL)",
        name="outbox_final_is_finished",
    ),
    sa.CheckConstraint("attempts >= 0 AND attempts <= fence", name="outbox_attempts_within_fence"),
    sa.CheckConstraint("started_fence <= fence", name="outbox_started_within_fence"),
    sa.CheckConstraint("forced_fence <= fence", name="outbox_forced_within_fence"),
    sa.CheckConstraint("max_attempts >= 1", name="outbox_max_attempts_positive"),
    sa.CheckConstraint("held_by IS NULL OR state = 'pending'", name="outbox_held_is_pending"),
    # No claim looks into another lane.
    sa.CheckConstraint("lane BETWEEN -1 AND 4", name="outbox_lane_known"),
    sa.CheckConstraint(one_of("step", Step), name="outbox_step_known"),
    sa.CheckConstraint(one_of("started_step", Step), name="outbox_started_step_known"),
    sa.CheckConstraint("step IS NULL OR kind = 'deprovision'", name="outbox_step_of_teardown"),
    sa.CheckConstraint(
        "started_step IS NULL OR (started_fence IS NOT NULL AND started_step <> 'wait')",
        name="outbox_started_step_acts",
    ),
    # The promise "not two", enforced by the database itself.
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
    sa.Index(
        "outbox_one_restore",
        "resource_id",
        unique=True,
        postgresql_where=sa.text("kind = 'restore' AND state NOT IN ('succeeded', 'cancelled')"),
    ),
    sa.Index(
        "outbox_one_release",
        "resource_id",
        unique=True,
        postgresql_where=sa.text("kind = 'release' AND state <> 'cancelled'"),
    ),
    # In the order of claims, so that a claim reads only the rows that it takes.
    sa.Index(
        "outbox_lanes",
        "backend",
        "lane",
        "available_at",
        "id",
        postgresql_where=sa.text("state = 'pending' AND held_by IS NULL"),
    ),
    sa.Index("outbox_held", "held_by", postgresql_where=sa.text("held_by IS NOT NULL")),
    sa.Index("outbox_leases", "lease_expires_at", postgresql_where=sa.text("state = 'running'")),
    sa.Index("outbox_of_resource", "resource_id"),
    sa.Index("outbox_stuck", "id", postgresql_where=sa.text("state = 'stuck'")),
    # For listings that filter by something rare; a page of something common is soon found along the primary key.
    sa.Index("outbox_of_backend", "backend", "id"),
    sa.Index("outbox_age", "created_at", postgresql_using="brin"),  # the table is nearly in the order of age
    sa.Index("outbox_failed", "id", postgresql_where=sa.text("last_error IS NOT NULL")),
    sa.Index("outbox_cancelled", "id", postgresql_where=sa.text("state = 'cancelled'")),
    # For who asks whether anybody still logs in to what is in quarantine.
    sa.Index(
        "outbox_quarantined",
        "backend",
        "id",
        postgresql_where=sa.text("step IN ('snapshot', 'wait') AND finished_at IS NULL"),
    ),
    sa.Index("outbox_restores", "id", postgresql_where=sa.text("kind = 'restore'")),
)
