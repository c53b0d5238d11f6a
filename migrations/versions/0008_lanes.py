"""Lanes: each job gets one as it is enqueued, by its kind and by how much its tenant has waiting on the backend."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# A trigger, so that whatever program enqueues a job gives it its lane. Counting stops where more would change nothing.
# The settings: the plan is kept for as long as a connection lives, and must suit a tenant with millions of jobs.
LANE = """
    CREATE FUNCTION deprovisioner_lane() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    DECLARE
        owner text;
        waiting integer;
    BEGIN
        SELECT tenant INTO owner FROM resources WHERE id = NEW.resource_id;
        IF NEW.kind = 'provision' THEN
            SELECT count(*) INTO waiting FROM (
                   SELECT FROM resources
                    WHERE tenant = owner AND backend = NEW.backend AND status = 'provisioning' LIMIT 251) AS counted;
        ELSE
            SELECT count(*) INTO waiting FROM (
                   SELECT FROM resources
                    WHERE tenant = owner AND backend = NEW.backend AND status = 'deleting' LIMIT 251) AS counted;
        END IF;
        NEW.lane = CASE WHEN waiting <= 10 THEN 0 WHEN waiting <= 50 THEN 1 WHEN waiting <= 250 THEN 2 ELSE 3 END
                 + CASE WHEN NEW.kind = 'provision' THEN 1 ELSE 0 END;
        RETURN NEW;
    END $$
"""
TRIGGER = "CREATE TRIGGER outbox_lane BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION deprovisioner_lane()"


def upgrade() -> None:
    # The jobs that wait already: behind the next teardowns of a tenant with few, among its provisions.
    op.add_column("outbox", sa.Column("lane", sa.SmallInteger(), server_default="1", nullable=False))
    # The next revision validates it: a scan of the whole table must not happen under this lock.
    op.execute("ALTER TABLE outbox ADD CONSTRAINT outbox_lane_known CHECK (lane BETWEEN 0 AND 4) NOT VALID")
    op.execute(LANE)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER outbox_lane ON outbox")
    op.execute("DROP FUNCTION deprovisioner_lane()")
    op.drop_constraint("outbox_lane_known", "outbox")
    op.drop_column("outbox", "lane")
