"""A place in time: the installation's identity, what places outside remember of it, and what stands still after a rewind."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# A recovery works through the same tables while everything else stands still.
STILL = """
    CREATE FUNCTION deprovisioner_still() RETURNS boolean LANGUAGE sql STABLE AS $$
        SELECT EXISTS (SELECT FROM holds WHERE cause = 'rewound' AND released_at IS NULL)
           AND coalesce(current_setting('deprovisioner.recovering', true), '') <> 'on'
    $$
"""
REFUSE = """
    CREATE FUNCTION deprovisioner_refuse_rewound() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF deprovisioner_still() THEN
            RAISE EXCEPTION 'the control database went back in time: nothing is written to % until `deprovisioner recover`',
                  TG_TABLE_NAME USING ERRCODE = 'DP015';
        END IF;
        RETURN NEW;
    END $$
"""
# By row: a sweep whose statement inserts nothing is refused nothing.
TRIGGERS = (
    """
    CREATE TRIGGER outbox_enqueue_rewound BEFORE INSERT ON outbox FOR EACH ROW
      EXECUTE FUNCTION deprovisioner_refuse_rewound()
    """,
    """
    CREATE TRIGGER resources_change_rewound BEFORE INSERT OR UPDATE OF protected, expires_at, grace_seconds, purge_at ON resources
      FOR EACH ROW EXECUTE FUNCTION deprovisioner_refuse_rewound()
    """,
    """
    CREATE TRIGGER outbox_start_rewound BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (NEW.started_fence IS DISTINCT FROM OLD.started_fence)
      EXECUTE FUNCTION deprovisioner_refuse_rewound()
    """,
    """
    CREATE TRIGGER holds_rewound_stays BEFORE UPDATE ON holds FOR EACH ROW
      WHEN (OLD.cause = 'rewound' OR NEW.cause = 'rewound')
      EXECUTE FUNCTION deprovisioner_rewound_stays()
    """,
)
# Of this transaction, as for `purge_at` in revision 0011.
STAYS = """
    CREATE FUNCTION deprovisioner_rewound_stays() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (SELECT FROM events
                        WHERE resource_id = (SELECT id FROM installation) AND event = 'recovered'
                          AND xmin = pg_current_xact_id()::xid) THEN
            RAISE EXCEPTION 'hold %: only a recovery ends it, or any other changes it; see `deprovisioner recover`', OLD.id
                  USING ERRCODE = 'DP015';
        END IF;
        RETURN NEW;
    END $$
"""
# Events are kept: once there is one without a job, the column stays as it is. Older code reads events by their job.
JOB_AGAIN = """
    DO $$
    BEGIN
        IF NOT EXISTS (SELECT FROM events WHERE job_id IS NULL) THEN
            ALTER TABLE events ALTER COLUMN job_id SET NOT NULL;
        END IF;
    END $$
"""
CAUSES = ("cause IN ('operator', 'brake', 'rewound')", "cause IN ('operator', 'brake')")


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("one", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("system_identifier", sa.Text(), nullable=True),
        sa.Column("database_oid", sa.BigInteger(), nullable=True),
        sa.Column("timeline", sa.BigInteger(), nullable=True),
        sa.Column("compared_under", sa.Text(), nullable=True),
        sa.Column("announced_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("one", name="installation_is_one"),
        sa.PrimaryKeyConstraint("one", name=op.f("installation_pkey")),
    )
    op.create_table(
        "memories",
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("event", sa.BigInteger(), nullable=True),
        sa.Column("remembered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("server", sa.Text(), nullable=True),
        sa.Column("compared_under", sa.Text(), nullable=True),
        sa.Column("compared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("behind_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("place", name=op.f("memories_pkey")),
    )
    op.alter_column("events", "job_id", nullable=True)
    op.drop_constraint("holds_cause_known", "holds")
    op.create_check_constraint("holds_cause_known", "holds", CAUSES[0])
    op.create_index(
        "holds_one_rewound",
        "holds",
        ["cause"],
        unique=True,
        postgresql_where=sa.text("cause = 'rewound' AND released_at IS NULL"),
    )
    for statement in (STILL, REFUSE, STAYS, *TRIGGERS):
        op.execute(statement)


def downgrade() -> None:
    for table, names in {
        "outbox": ("outbox_enqueue_rewound", "outbox_start_rewound"),
        "resources": ("resources_change_rewound",),
        "holds": ("holds_rewound_stays",),
    }.items():
        for name in names:
            op.execute(f"DROP TRIGGER {name} ON {table}")
    for function in ("rewound_stays", "refuse_rewound", "still"):
        op.execute(f"DROP FUNCTION deprovisioner_{function}()")
    op.drop_index("holds_one_rewound", table_name="holds")
    op.drop_constraint("holds_cause_known", "holds")
    op.create_check_constraint("holds_cause_known", "holds", CAUSES[1])  # fails while a hold has the new cause
    op.execute(JOB_AGAIN)
    op.drop_table("memories")
    op.drop_table("installation")
