"""The audit: a hash chain of each resource's events, and append-only checkpoints over the heads of all chains."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# The bytes of a hash: no setting of a session (timezone, bytea_output) may change them.
# outbox/audit/chain.py has its own copy, since the doctor must not ask the trigger whether the trigger was right.
LINK = """sha256(coalesce({last}.hash, '') || convert_to(CAST(jsonb_build_array(
            {row}.id, CAST(extract(epoch FROM {row}.at) AS text), {row}.job_id, {row}.resource_id, {row}.fence,
            {row}.seq, {row}.event, {row}.actor, {row}.reason, {row}.detail) AS text), 'UTF8'))"""

# The lock: two jobs of one resource may write an event at the same moment, and only one event can be the next.
CHAIN = f"""
    CREATE FUNCTION deprovisioner_chain() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        last record;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended(CAST(NEW.resource_id AS text), 0));
        SELECT seq, hash INTO last FROM events WHERE resource_id = NEW.resource_id ORDER BY seq DESC LIMIT 1;
        NEW.seq = coalesce(last.seq, 0) + 1;
        NEW.hash = {LINK.format(last="last", row="NEW")};
        RETURN NEW;
    END $$
"""

# Row by row: each hash covers the hash before it.
BACKFILL = f"""
    DO $$
    DECLARE
        row record;
        last record;
    BEGIN
        FOR row IN SELECT *, row_number() OVER (PARTITION BY resource_id ORDER BY id) AS nth
                     FROM events ORDER BY resource_id, id LOOP
            row.seq = row.nth;
            IF row.seq = 1 THEN
                SELECT CAST(NULL AS bytea) AS hash INTO last;
            END IF;
            UPDATE events SET seq = row.seq, hash = {LINK.format(last="last", row="row")}
             WHERE id = row.id RETURNING hash INTO last;
        END LOOP;
    END $$
"""

TRIGGERS = (
    "CREATE TRIGGER events_chained BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION deprovisioner_chain()",
    *(
        f"""
        CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT
          EXECUTE FUNCTION deprovisioner_forbid('the audit is append-only')
        """
        for table in ("audit_checkpoints", "audit_heads")
    ),
)


def upgrade() -> None:
    op.add_column("events", sa.Column("seq", sa.BigInteger(), nullable=True))
    op.add_column("events", sa.Column("hash", sa.LargeBinary(), nullable=True))
    # Millions of events take more than a minute, and half a chain would be useless.
    op.execute("SET LOCAL statement_timeout = 0")
    op.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
    op.execute(BACKFILL)
    op.execute("ALTER TABLE events ENABLE TRIGGER events_append_only")
    op.alter_column("events", "seq", nullable=False)
    op.alter_column("events", "hash", nullable=False)
    op.drop_index("events_of_resource", table_name="events")
    op.create_index("events_chain", "events", ["resource_id", "seq"], unique=True)
    op.create_index(
        "resources_purged",
        "resources",
        ["purged_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'deleted'"),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("events_from", sa.BigInteger(), nullable=False),
        sa.Column("events_to", sa.BigInteger(), nullable=False),
        sa.Column("heads", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_checkpoints_pkey")),
    )
    op.create_index("audit_checkpoints_previous", "audit_checkpoints", ["previous"], unique=True)
    op.create_table(
        "audit_heads",
        sa.Column("checkpoint_id", sa.BigInteger(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_id", "resource_id", name=op.f("audit_heads_pkey")),
    )
    op.create_index("audit_heads_of_resource", "audit_heads", ["resource_id", "seq"], unique=False)
    op.execute(CHAIN)
    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_index("audit_heads_of_resource", table_name="audit_heads")
    op.drop_table("audit_heads")
    op.drop_index("audit_checkpoints_previous", table_name="audit_checkpoints")
    op.drop_table("audit_checkpoints")
    op.drop_index("resources_purged", table_name="resources", postgresql_where=sa.text("status = 'deleted'"))
    op.execute("DROP TRIGGER events_chained ON events")
    op.execute("DROP FUNCTION deprovisioner_chain()")
    op.drop_index("events_chain", table_name="events")
    op.create_index("events_of_resource", "events", ["resource_id", "id"], unique=False)
    op.drop_column("events", "hash")
    op.drop_column("events", "seq")
