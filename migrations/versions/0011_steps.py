"""Steps of a teardown, `purge_at` and restores. The new columns are NULL in old rows, so that no table is rewritten."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Each claim forgets which step was started, so that each start says it again. A worker of an older version does not say
# it, and knows no step but `destroy`.
CLAIM = """
    CREATE FUNCTION deprovisioner_claim() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.started_step = NULL;
        RETURN NEW;
    END $$
"""
CLAIM_TRIGGER = """
    CREATE TRIGGER outbox_claim BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (NEW.fence > OLD.fence AND OLD.started_step IN ('quarantine', 'snapshot'))
      EXECUTE FUNCTION deprovisioner_claim()
"""
# `WHEN` of a trigger cannot read other tables, so these functions decide by themselves.
# A teardown of before this revision has neither step: it destroys.
START = """
    CREATE FUNCTION deprovisioner_start() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        resource resources;
    BEGIN
        IF OLD.started_step = 'destroy' AND NEW.started_step IS DISTINCT FROM 'destroy' THEN
            RAISE EXCEPTION 'job %: what has started to destroy never starts at another step', NEW.id
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF NEW.started_step IS NULL AND NEW.step IN ('quarantine', 'snapshot', 'wait') THEN
            RAISE EXCEPTION 'job %: the start does not say that it is one of %; is this a worker of an older version?',
                  NEW.id, NEW.step USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        NEW.started_step = coalesce(NEW.started_step, 'destroy');
        IF NEW.started_step = 'destroy' THEN
            NEW.step = 'destroy';
            SELECT * INTO resource FROM resources WHERE id = NEW.resource_id;
            IF resource.purge_at > clock_timestamp() THEN
                RAISE EXCEPTION 'resource % must not be destroyed before %', NEW.resource_id, resource.purge_at
                      USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            IF NEW.needs_snapshot AND NOT EXISTS (
                   SELECT FROM snapshots WHERE job_id = NEW.id AND verified_at IS NOT NULL) THEN
                RAISE EXCEPTION 'resource % must not be destroyed before its snapshot is verified', NEW.resource_id
                      USING ERRCODE = 'integrity_constraint_violation';
            END IF;
        END IF;
        RETURN NEW;
    END $$
"""
START_TRIGGER = """
    CREATE TRIGGER outbox_start BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (NEW.kind = 'deprovision'
            AND (NEW.started_fence IS DISTINCT FROM OLD.started_fence
                 OR (NEW.started_step IS DISTINCT FROM OLD.started_step
                     AND (NEW.started_step IS NOT NULL OR NEW.fence = OLD.fence OR OLD.started_step = 'destroy'))))
      EXECUTE FUNCTION deprovisioner_start()
"""
# Before this revision a start did not say its step: it destroyed.
DESTROYING_TRIGGER = """
    CREATE TRIGGER outbox_destroying_stays BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (NEW.kind = 'deprovision' AND NEW.state = 'cancelled'
            AND (OLD.started_step = 'destroy' OR (OLD.step IS NULL AND OLD.started_fence IS NOT NULL)))
      EXECUTE FUNCTION deprovisioner_forbid('a teardown that has started to destroy is never cancelled')
"""
# A job that took another's kind or resource for the moment of its start would start by another's rules.
IDENTITY_TRIGGER = """
    CREATE TRIGGER outbox_identity_stays BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (NEW.kind <> OLD.kind OR NEW.resource_id <> OLD.resource_id)
      EXECUTE FUNCTION deprovisioner_forbid('a job keeps its kind and its resource')
"""
NEEDS_TRIGGER = """
    CREATE TRIGGER outbox_needs_snapshot_stays BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (OLD.needs_snapshot AND NOT NEW.needs_snapshot)
      EXECUTE FUNCTION deprovisioner_forbid('a teardown that needs a snapshot never stops to need it')
"""
# Of this transaction: an event that an earlier one wrote allowed another `purge_at`.
CHANGE = """
    CREATE FUNCTION deprovisioner_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.version = OLD.version + 1;
        IF NEW.status = 'deleting' AND OLD.status <> 'deleting' THEN
            NEW.purge_at = coalesce(NEW.purge_at, now());
        ELSIF OLD.status = 'deleting' AND NEW.status IN ('provisioning', 'active', 'restoring') THEN
            NEW.purge_at = NULL;
            IF EXISTS (SELECT FROM outbox WHERE resource_id = NEW.id AND kind = 'deprovision' AND state <> 'cancelled') THEN
                RAISE EXCEPTION 'resource %: its teardown was not cancelled', NEW.id
                      USING ERRCODE = 'integrity_constraint_violation';
            END IF;
        ELSIF OLD.purge_at IS NOT NULL AND (NEW.purge_at IS NULL OR NEW.purge_at < OLD.purge_at)
              AND NOT EXISTS (SELECT FROM events
                               WHERE resource_id = NEW.id AND event = 'purge_ordered'
                                 AND xmin = pg_current_xact_id()::xid) THEN
            RAISE EXCEPTION 'resource %: purge_at is lowered only by a purge', NEW.id
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$
"""
CHANGE_TRIGGER = (
    "CREATE TRIGGER resources_change BEFORE UPDATE ON resources FOR EACH ROW EXECUTE FUNCTION deprovisioner_change()"
)
# As in revision 0008; and a restore has a lane of its own, a teardown of an older program its one step.
LANE = """
    CREATE OR REPLACE FUNCTION deprovisioner_lane() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    DECLARE
        owner text;
        waiting integer;
    BEGIN{restores}
        SELECT tenant INTO owner FROM resources WHERE id = NEW.resource_id;
        IF NEW.kind = 'provision' THEN
            SELECT count(*) INTO waiting FROM (
                   SELECT FROM resources
                    WHERE tenant = owner AND backend = NEW.backend AND status = 'provisioning' LIMIT 251) AS counted;
        ELSE{step}
            SELECT count(*) INTO waiting FROM (
                   SELECT FROM resources
                    WHERE tenant = owner AND backend = NEW.backend AND status = 'deleting' LIMIT 251) AS counted;
        END IF;
        NEW.lane = CASE WHEN waiting <= 10 THEN 0 WHEN waiting <= 50 THEN 1 WHEN waiting <= 250 THEN 2 ELSE 3 END
                 + CASE WHEN NEW.kind = 'provision' THEN 1 ELSE 0 END;
        RETURN NEW;
    END $$
"""
RESTORES = """
        IF NEW.kind = 'restore' THEN
            NEW.lane = -1;
            RETURN NEW;
        END IF;"""
STEP = """
            NEW.step = coalesce(NEW.step, 'destroy');"""

# By table: what each CHECK is called, and what it says now and said before. Revision 0012 validates them.
CHANGED = {
    "outbox": (
        ("outbox_lane_known", "lane BETWEEN -1 AND 4", "lane BETWEEN 0 AND 4"),
        (
            "outbox_stuck_reason_known",
            "stuck_reason IN ('attempts_exhausted', 'refused', 'outcome_unknown', 'snapshot_failed')",
            "stuck_reason IN ('attempts_exhausted', 'refused', 'outcome_unknown')",
        ),
    ),
    "resources": (
        (
            "resources_status_known",
            "status IN ('provisioning', 'active', 'deleting', 'deleted', 'restoring')",
            "status IN ('provisioning', 'active', 'deleting', 'deleted')",
        ),
    ),
    "approvals": (
        ("approvals_action_known", "action IN ('resolve', 'redrive', 'purge')", "action IN ('resolve', 'redrive')"),
    ),
    "operations": (
        (
            "operations_kind_known",
            "kind IN ('redrive', 'offboard', 'restore')",
            "kind IN ('redrive', 'offboard')",
        ),
    ),
    "operation_items": (
        (
            "operation_items_outcome_known",
            "outcome IN ('redriven', 'failed', 'stopped', 'enqueued', 'protected', 'skipped', 'restoring')",
            "outcome IN ('redriven', 'failed', 'stopped', 'enqueued', 'protected', 'skipped')",
        ),
    ),
}
ADDED = {
    "outbox": (
        ("outbox_step_known", "step IN ('quarantine', 'snapshot', 'wait', 'destroy')"),
        ("outbox_started_step_known", "started_step IN ('quarantine', 'snapshot', 'wait', 'destroy')"),
        ("outbox_step_of_teardown", "step IS NULL OR kind = 'deprovision'"),
        ("outbox_started_step_acts", "started_step IS NULL OR (started_fence IS NOT NULL AND started_step <> 'wait')"),
    ),
    "resources": (
        ("resources_purge_is_deleting", "purge_at IS NULL OR status IN ('deleting', 'deleted')"),
        ("resources_grace_positive", "grace_seconds >= 0"),
        ("resources_snapshot_known", "snapshot IN ('required', 'off')"),
    ),
}


def _check(table: str, name: str, says: str) -> None:
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({says}) NOT VALID")


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("detail", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("snapshots_pkey")),
    )
    op.create_index("snapshots_of_resource", "snapshots", ["resource_id"])
    op.create_index("snapshots_of_job", "snapshots", ["job_id"], postgresql_where=sa.text("verified_at IS NOT NULL"))
    op.create_index("snapshots_expiring", "snapshots", ["expires_at"], postgresql_where=sa.text("removed_at IS NULL"))
    op.create_table(
        "login_attempts",
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("addresses", postgresql.JSONB(), nullable=False),
        sa.Column("groups", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("resource_id", name=op.f("login_attempts_pkey")),
    )
    op.add_column("resources", sa.Column("purge_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("resources", sa.Column("grace_seconds", sa.Integer(), nullable=True))
    op.add_column("resources", sa.Column("snapshot", sa.Text(), nullable=True))
    op.add_column("resources", sa.Column("version", sa.BigInteger(), server_default="1", nullable=False))
    op.add_column("outbox", sa.Column("step", sa.Text(), nullable=True))
    op.add_column("outbox", sa.Column("started_step", sa.Text(), nullable=True))
    op.add_column("outbox", sa.Column("needs_snapshot", sa.Boolean(), server_default=sa.false(), nullable=False))
    for table, checks in CHANGED.items():
        for name, now, _ in checks:
            op.drop_constraint(name, table)
            _check(table, name, now)
    for table, added in ADDED.items():
        for name, now in added:
            _check(table, name, now)
    lane = LANE.format(restores=RESTORES, step=STEP)
    starts = (CLAIM, CLAIM_TRIGGER, START, START_TRIGGER, NEEDS_TRIGGER, DESTROYING_TRIGGER, IDENTITY_TRIGGER)
    for statement in (lane, *starts, CHANGE, CHANGE_TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER resources_change ON resources")
    op.execute("DROP FUNCTION deprovisioner_change()")
    op.execute("DROP TRIGGER outbox_identity_stays ON outbox")
    op.execute("DROP TRIGGER outbox_destroying_stays ON outbox")
    op.execute("DROP TRIGGER outbox_needs_snapshot_stays ON outbox")
    op.execute("DROP TRIGGER outbox_start ON outbox")
    op.execute("DROP FUNCTION deprovisioner_start()")
    op.execute("DROP TRIGGER outbox_claim ON outbox")
    op.execute("DROP FUNCTION deprovisioner_claim()")
    op.execute(LANE.format(restores="", step=""))
    for table, added in ADDED.items():
        for name, _ in added:
            op.drop_constraint(name, table)
    for table, checks in CHANGED.items():
        for name, _, before in checks:
            op.drop_constraint(name, table)
            op.create_check_constraint(name, table, before)  # fails while a row is in a state that it does not know
    for column in ("needs_snapshot", "started_step", "step"):
        op.drop_column("outbox", column)
    for column in ("version", "snapshot", "grace_seconds", "purge_at"):
        op.drop_column("resources", column)
    op.drop_table("login_attempts")
    op.drop_table("snapshots")
