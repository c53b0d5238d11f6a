"""The outbox: tables, indexes and CHECKs, and the triggers that keep final states final and events append-only."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A trigger's WHEN decides what is forbidden; the function only raises the error.
TRIGGERS = (
    """
    CREATE FUNCTION deprovisioner_forbid() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% on % refused: %', TG_OP, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE TRIGGER outbox_final_is_final BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (OLD.state IN ('succeeded', 'cancelled'))
      EXECUTE FUNCTION deprovisioner_forbid('a succeeded or cancelled job is final')
    """,
    """
    CREATE TRIGGER outbox_fence_never_falls BEFORE UPDATE ON outbox FOR EACH ROW
      WHEN (NEW.fence < OLD.fence)
      EXECUTE FUNCTION deprovisioner_forbid('a fence is never lowered')
    """,
    """
    CREATE TRIGGER outbox_live_stays BEFORE DELETE ON outbox FOR EACH ROW
      WHEN (OLD.state NOT IN ('succeeded', 'cancelled'))
      EXECUTE FUNCTION deprovisioner_forbid('a job that is not final may not be removed')
    """,
    """
    CREATE TRIGGER resources_deleted_is_final BEFORE UPDATE ON resources FOR EACH ROW
      WHEN (OLD.status = 'deleted')
      EXECUTE FUNCTION deprovisioner_forbid('a deleted resource is final')
    """,
    """
    CREATE TRIGGER resources_live_stays BEFORE DELETE ON resources FOR EACH ROW
      WHEN (OLD.status <> 'deleted')
      EXECUTE FUNCTION deprovisioner_forbid('a resource that is not deleted may not be removed')
    """,
    """
    CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events FOR EACH STATEMENT
      EXECUTE FUNCTION deprovisioner_forbid('events are append-only')
    """,
)


def upgrade() -> None:
    op.create_table(
        "breakers",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("backend", name=op.f("breakers_pkey")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("events_pkey")),
    )
    op.create_index("events_of_job", "events", ["job_id", "id"], unique=False)
    op.create_index("events_of_resource", "events", ["resource_id", "id"], unique=False)
    op.create_table(
        "resources",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="provisioning", nullable=False),
        sa.Column("protected", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("adopted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("generation", sa.Uuid(), nullable=False),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("credentials", sa.LargeBinary(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_digest", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("activated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(status = 'deleted') = (purged_at IS NOT NULL)", name="resources_deleted_is_purged"),
        sa.CheckConstraint(
            "(status IN ('deleting', 'deleted')) = (deleted_at IS NOT NULL)", name="resources_deleting_since"
        ),
        sa.CheckConstraint(
            "status <> 'active' OR (activated_at IS NOT NULL AND manifest IS NOT NULL)",
            name="resources_active_has_manifest",
        ),
        sa.CheckConstraint("status <> 'deleted' OR credentials IS NULL", name="resources_deleted_has_no_credentials"),
        sa.CheckConstraint(
            "status IN ('provisioning', 'active', 'deleting', 'deleted')", name="resources_status_known"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("resources_pkey")),
    )
    op.create_index("resources_generation", "resources", ["generation"], unique=True)
    op.create_index(
        "resources_expiring",
        "resources",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'active' AND expires_at IS NOT NULL"),
    )
    op.create_index(
        "resources_idempotency",
        "resources",
        ["tenant", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "resources_listing",
        "resources",
        ["tenant", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "resources_listing_all",
        "resources",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(role = 'tenant') = (tenant IS NOT NULL)", name="tokens_tenant_has_tenant"),
        sa.CheckConstraint("role IN ('tenant', 'operator')", name="tokens_role_known"),
        sa.PrimaryKeyConstraint("id", name=op.f("tokens_pkey")),
    )
    op.create_index("tokens_digest", "tokens", ["digest"], unique=True)
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("stuck_reason", sa.Text(), nullable=True),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_fence", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'running') = (claimed_by IS NOT NULL)", name="outbox_running_has_claim"),
        sa.CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="outbox_running_has_lease"),
        sa.CheckConstraint("(state = 'stuck') = (stuck_reason IS NOT NULL)", name="outbox_stuck_has_reason"),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'cancelled')) = (finished_at IS NOT NULL)", name="outbox_final_is_finished"
        ),
        sa.CheckConstraint("kind IN ('provision', 'deprovision', 'restore')", name="outbox_kind_known"),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'stuck', 'succeeded', 'cancelled')", name="outbox_state_known"
        ),
        sa.CheckConstraint(
            "stuck_reason IN ('attempts_exhausted', 'refused', 'outcome_unknown')", name="outbox_stuck_reason_known"
        ),
        sa.CheckConstraint("attempts >= 0 AND attempts <= fence", name="outbox_attempts_within_fence"),
        sa.CheckConstraint("max_attempts >= 1", name="outbox_max_attempts_positive"),
        sa.CheckConstraint("started_fence <= fence", name="outbox_started_within_fence"),
        sa.ForeignKeyConstraint(["resource_id"], ["resources.id"], name=op.f("outbox_resource_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("outbox_pkey")),
    )
    op.create_index(
        "outbox_leases", "outbox", ["lease_expires_at"], unique=False, postgresql_where=sa.text("state = 'running'")
    )
    op.create_index("outbox_of_resource", "outbox", ["resource_id"], unique=False)
    op.create_index(
        "outbox_one_deprovision",
        "outbox",
        ["resource_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'deprovision' AND state <> 'cancelled'"),
    )
    op.create_index(
        "outbox_one_provision",
        "outbox",
        ["resource_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'provision' AND state <> 'cancelled'"),
    )
    op.create_index(
        "outbox_pending",
        "outbox",
        ["backend", "available_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("outbox_stuck", "outbox", ["id"], unique=False, postgresql_where=sa.text("state = 'stuck'"))
    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_index("outbox_stuck", table_name="outbox", postgresql_where=sa.text("state = 'stuck'"))
    op.drop_index("outbox_pending", table_name="outbox", postgresql_where=sa.text("state = 'pending'"))
    op.drop_index(
        "outbox_one_provision",
        table_name="outbox",
        postgresql_where=sa.text("kind = 'provision' AND state <> 'cancelled'"),
    )
    op.drop_index(
        "outbox_one_deprovision",
        table_name="outbox",
        postgresql_where=sa.text("kind = 'deprovision' AND state <> 'cancelled'"),
    )
    op.drop_index("outbox_of_resource", table_name="outbox")
    op.drop_index("outbox_leases", table_name="outbox", postgresql_where=sa.text("state = 'running'"))
    op.drop_table("outbox")
    op.drop_index("tokens_digest", table_name="tokens")
    op.drop_table("tokens")
    op.drop_index("resources_generation", table_name="resources")
    op.drop_index("resources_listing_all", table_name="resources")
    op.drop_index("resources_listing", table_name="resources")
    op.drop_index(
        "resources_idempotency", table_name="resources", postgresql_where=sa.text("idempotency_key IS NOT NULL")
    )
    op.drop_index(
        "resources_expiring",
        table_name="resources",
        postgresql_where=sa.text("status = 'active' AND expires_at IS NOT NULL"),
    )
    op.drop_table("resources")
    op.drop_index("events_of_resource", table_name="events")
    op.drop_index("events_of_job", table_name="events")
    op.drop_table("events")
    op.drop_table("breakers")
    op.execute("DROP FUNCTION deprovisioner_forbid()")
