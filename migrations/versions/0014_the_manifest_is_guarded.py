"""What a DELETE will destroy, and whose it is, changes only by the transitions that record it."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# `UPDATE OF`: no transition of a teardown names these columns, so it pays nothing for their triggers.
TRIGGERS = {
    "resources_identity_stays": """
        BEFORE UPDATE OF id, tenant, kind, backend, adopted, generation, created_at ON resources FOR EACH ROW
          WHEN ((NEW.id, NEW.tenant, NEW.kind, NEW.backend, NEW.adopted, NEW.generation, NEW.created_at)
                IS DISTINCT FROM
                (OLD.id, OLD.tenant, OLD.kind, OLD.backend, OLD.adopted, OLD.generation, OLD.created_at))
          EXECUTE FUNCTION deprovisioner_forbid('a resource keeps its tenant, kind, backend and generation')
    """,
    "resources_credentials_stay": """
        BEFORE UPDATE OF credentials ON resources FOR EACH ROW
          WHEN (NEW.credentials IS DISTINCT FROM OLD.credentials
                AND NOT (OLD.credentials IS NULL AND OLD.status = 'provisioning')
                AND NOT (NEW.credentials IS NULL AND NEW.status = 'deleted'))
          EXECUTE FUNCTION deprovisioner_forbid('credentials are set by a provision, and end with the resource')
    """,
    "resources_manifest_is_its_own": """
        BEFORE INSERT OR UPDATE OF manifest ON resources FOR EACH ROW
          WHEN (NEW.manifest ->> 'generation' <> CAST(NEW.generation AS text))
          EXECUTE FUNCTION deprovisioner_forbid('a manifest bears the generation of its own resource')
    """,
    # At the end of its statement: only then the event that the same statement writes can be seen.
    "resources_manifest_recorded": """
        AFTER UPDATE OF manifest ON resources FOR EACH ROW
          WHEN (NEW.manifest IS DISTINCT FROM OLD.manifest)
          EXECUTE FUNCTION deprovisioner_manifest()
    """,
    "outbox_origin_stays": """
        BEFORE UPDATE OF id, backend, request_id ON outbox FOR EACH ROW
          WHEN ((NEW.id, NEW.backend, NEW.request_id) IS DISTINCT FROM (OLD.id, OLD.backend, OLD.request_id))
          EXECUTE FUNCTION deprovisioner_forbid('a job keeps its backend and its request')
    """,
}
# The event and the step of its job are of this very transaction. A provision stores a plan once, and its end the
# identity; any other start adds what a manifest lacks. The start of an older worker's provision does not say its plan.
MANIFEST = """
    CREATE FUNCTION deprovisioner_manifest() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
               SELECT FROM events JOIN outbox AS job ON job.id = job_id
                WHERE events.resource_id = NEW.id AND job.resource_id = NEW.id AND job.fence = events.fence
                  AND events.xmin = pg_current_xact_id()::xid AND job.xmin = pg_current_xact_id()::xid
                  AND CASE
                      WHEN event = 'activated' THEN
                           job.kind = 'provision' AND job.state = 'succeeded' AND detail -> 'manifest' = NEW.manifest
                      WHEN event <> 'started' OR job.started_fence IS DISTINCT FROM job.fence THEN false
                      WHEN job.kind = 'provision' THEN
                           OLD.manifest IS NULL AND coalesce(detail -> 'manifest' = NEW.manifest, true)
                      ELSE NEW.manifest = OLD.manifest || (detail #> '{seen,completes}')
                           AND NOT EXISTS (SELECT FROM jsonb_each(OLD.manifest) AS kept
                                            WHERE kept.value <> 'null'
                                              AND (NEW.manifest -> kept.key) IS DISTINCT FROM kept.value) END) THEN
            RAISE EXCEPTION 'resource %: its manifest changes only by the start or the end of a job that records it',
                  NEW.id USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NULL;
    END $$
"""
# As in revision 0011; and a job is of its resource's backend.
LANE = """
    CREATE OR REPLACE FUNCTION deprovisioner_lane() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    DECLARE
        owner text;{declared}
        waiting integer;
    BEGIN{before}
        IF NEW.kind = 'restore' THEN
            NEW.lane = -1;
            RETURN NEW;
        END IF;{after}
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
HOME = """
        SELECT tenant, backend INTO owner, home FROM resources WHERE id = NEW.resource_id;
        IF NEW.backend <> home THEN
            RAISE EXCEPTION 'resource % is on backend %, not on %', NEW.resource_id, home, NEW.backend
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;"""
OWNER = """
        SELECT tenant INTO owner FROM resources WHERE id = NEW.resource_id;"""


def upgrade() -> None:
    op.execute(LANE.format(declared="\n        home text;", before=HOME, after=""))
    op.execute(MANIFEST)
    for name, says in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {says}")


def downgrade() -> None:
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {name.partition('_')[0]}")
    op.execute("DROP FUNCTION deprovisioner_manifest()")
    op.execute(LANE.format(declared="", before="", after=OWNER))
