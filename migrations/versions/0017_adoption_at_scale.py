"""External ids, labels and filters of resources; adoption in bulk; releases. All may be run again where it failed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

NEWEST = "created_at DESC, id DESC"
# A label or an external id costs an INSERT nothing where there is none.
INDEXES = {
    "resources_external_id": "UNIQUE INDEX {} ON resources (tenant, external_id) "
    "WHERE external_id IS NOT NULL AND status NOT IN ('deleted', 'released')",
    "resources_external": "INDEX {} ON resources (external_id) WHERE external_id IS NOT NULL",
    "resources_labels": "INDEX {} ON resources USING gin (labels jsonb_path_ops) WHERE labels <> '{{}}'",
    "resources_named": "INDEX {} ON resources (name)",
    "resources_of_backend": f"INDEX {{}} ON resources (backend, {NEWEST})",
    "resources_adopted": f"INDEX {{}} ON resources ({NEWEST}) WHERE adopted",
    "resources_protected": f"INDEX {{}} ON resources ({NEWEST}) WHERE protected",
    "outbox_one_release": "UNIQUE INDEX {} ON outbox (resource_id) WHERE kind = 'release' AND state <> 'cancelled'",
}
# By table: what each CHECK is called, what it says now, and said before.
CHECKS = {
    "resources": (
        (
            "resources_status_known",
            "status IN ('provisioning', 'active', 'deleting', 'deleted', 'restoring', 'releasing', 'released')",
            "status IN ('provisioning', 'active', 'deleting', 'deleted', 'restoring')",
        ),
        (
            "resources_deleted_has_no_credentials",
            "status NOT IN ('deleted', 'released') OR credentials IS NULL",
            "status <> 'deleted' OR credentials IS NULL",
        ),
        ("resources_labels_object", "jsonb_typeof(labels) = 'object'", None),
    ),
    "outbox": (
        (
            "outbox_kind_known",
            "kind IN ('provision', 'deprovision', 'restore', 'release')",
            "kind IN ('provision', 'deprovision', 'restore')",
        ),
    ),
    "operations": (
        (
            "operations_kind_known",
            "kind IN ('redrive', 'offboard', 'restore', 'adopt_preview', 'adopt')",
            "kind IN ('redrive', 'offboard', 'restore')",
        ),
        (
            "operations_redrive_has_rate",
            "(kind IN ('redrive', 'adopt')) = (rate IS NOT NULL)",
            "(kind = 'redrive') = (rate IS NOT NULL)",
        ),
    ),
    "operation_items": (
        (
            "operation_items_outcome_known",
            "outcome IN ('redriven', 'failed', 'stopped', 'enqueued', 'protected', 'skipped', 'restoring', "
            "'adoptable', 'refused')",
            "outcome IN ('redriven', 'failed', 'stopped', 'enqueued', 'protected', 'skipped', 'restoring')",
        ),
    ),
}
RELEASED = """
    CREATE TRIGGER resources_released_is_final BEFORE UPDATE ON resources FOR EACH ROW
      WHEN (OLD.status = 'released')
      EXECUTE FUNCTION deprovisioner_forbid('a released resource is final')
"""
CREDENTIALS = """
    CREATE TRIGGER resources_credentials_stay BEFORE UPDATE OF credentials ON resources FOR EACH ROW
      WHEN (NEW.credentials IS DISTINCT FROM OLD.credentials
            AND NOT (OLD.credentials IS NULL AND OLD.status = 'provisioning')
            AND NOT (NEW.credentials IS NULL AND NEW.status IN {}))
      EXECUTE FUNCTION deprovisioner_forbid('credentials are set by a provision, and end with the resource')
"""
# As in revision 0014; and a release, which is one short statement on its server, waits behind no crowd of its tenant.
LANE = """
    CREATE OR REPLACE FUNCTION deprovisioner_lane() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    DECLARE
        owner text;
        home text;
        waiting integer;
    BEGIN
        SELECT tenant, backend INTO owner, home FROM resources WHERE id = NEW.resource_id;
        IF NEW.backend <> home THEN
            RAISE EXCEPTION 'resource % is on backend %, not on %', NEW.resource_id, home, NEW.backend
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF NEW.kind = 'restore' THEN
            NEW.lane = -1;
            RETURN NEW;
        END IF;{release}
        IF NEW.kind = 'provision' THEN
            SELECT count(*) INTO waiting FROM (
                   SELECT FROM resources
                    WHERE tenant = owner AND backend = NEW.backend AND status = 'provisioning' LIMIT 251) AS counted;
        ELSE
            NEW.step = coalesce(NEW.step, 'destroy');
            SELECT count(*) INTO waiting FROM (
                   SELECT FROM resources
                    WHERE tenant = owner AND backend = NEW.backend AND status = 'deleting' LIMIT 251) AS counted;
        END IF;
        NEW.lane = CASE WHEN waiting <= 10 THEN 0 WHEN waiting <= 50 THEN 1 WHEN waiting <= 250 THEN 2 ELSE 3 END
                 + CASE WHEN NEW.kind = 'provision' THEN 1 ELSE 0 END;
        RETURN NEW;
    END $$
"""
RELEASE = """
        IF NEW.kind = 'release' THEN
            NEW.lane = 1;
            RETURN NEW;
        END IF;"""


def _patiently() -> None:
    """No request waits for the next statements. They wait for open transactions."""
    op.execute("SET statement_timeout = 0")
    op.execute("SET lock_timeout = 0")


def _as_ever() -> None:
    op.execute("SET statement_timeout = '60s'")  # as migrations/env.py has them
    op.execute("SET lock_timeout = '4s'")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE resources ADD COLUMN IF NOT EXISTS external_id text")
        op.execute("ALTER TABLE resources ADD COLUMN IF NOT EXISTS labels jsonb NOT NULL DEFAULT '{}'")
        for table, checks in CHECKS.items():
            for name, now, _ in checks:
                op.execute(
                    f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} CHECK ({now}) NOT VALID"
                )
        _patiently()
        for table, checks in CHECKS.items():
            for name, _, _ in checks:
                op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        for name, says in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # one that failed to be made is there, and invalid
            op.execute("CREATE " + says.replace("INDEX {}", "INDEX CONCURRENTLY {}").format(name))
        _as_ever()
    op.create_table(
        "adoptions",
        sa.Column("operation_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("asked", postgresql.JSONB(), nullable=False),
        sa.Column("taken_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("inspected_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("inspected_by", sa.Text(), nullable=True),
        sa.Column("findings", postgresql.JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("operation_id", "n", name=op.f("adoptions_pkey")),
    )
    op.create_index(
        "adoptions_waiting", "adoptions", ["operation_id", "n"], postgresql_where=sa.text("inspected_at IS NULL")
    )
    op.execute(LANE.format(release=RELEASE))
    op.execute(RELEASED)
    op.execute("DROP TRIGGER resources_credentials_stay ON resources")
    op.execute(CREDENTIALS.format("('deleted', 'released')"))


def downgrade() -> None:
    op.execute("DROP TRIGGER resources_credentials_stay ON resources")
    op.execute(CREDENTIALS.replace("IN {}", "= 'deleted'"))
    op.execute("DROP TRIGGER resources_released_is_final ON resources")
    op.execute(LANE.format(release=""))
    op.drop_table("adoptions")
    for name in INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {name}")
    for table, checks in CHECKS.items():
        for name, _, before in checks:
            op.drop_constraint(name, table)
            if before is not None:
                op.create_check_constraint(name, table, before)  # fails while a row is in a state that it does not know
    op.drop_column("resources", "labels")
    op.drop_column("resources", "external_id")
