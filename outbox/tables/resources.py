"""The table of the customers' resources."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from outbox.states import (
    ResourceStatus,
    SnapshotPolicy,
)
from outbox.tables.metadata import metadata, one_of, timestamp

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
    # The caller's own id of it, and the caller's labels: an object of short texts.
    sa.Column("external_id", sa.Text),
    sa.Column("labels", JSONB, nullable=False, server_default="{}"),
    sa.Column("generation", sa.Uuid, nullable=False),
    sa.Column("manifest", JSONB),
    sa.Column("credentials", sa.LargeBinary),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_digest", sa.Text),
    timestamp("created_at", now=True),
    timestamp("activated_at"),
    timestamp("deleted_at"),
    timestamp("purged_at"),
    timestamp("expires_at"),
    # A trigger (revision 0011) sets it where an older program deletes, and refuses to lower it without a purge event.
    timestamp("purge_at"),
    # The resource's own; NULL where its backend's count.
    sa.Column("grace_seconds", sa.Integer),
    sa.Column("snapshot", sa.Text),
    # A trigger raises it with each change of the row.
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.CheckConstraint(one_of("status", ResourceStatus), name="resources_status_known"),
    sa.CheckConstraint("(status = 'deleted') = (purged_at IS NOT NULL)", name="resources_deleted_is_purged"),
    sa.CheckConstraint(
        "(status IN ('deleting', 'deleted', 'abandoned')) = (deleted_at IS NOT NULL)", name="resources_deleting_since"
    ),
    sa.CheckConstraint(
        "status <> 'active' OR (activated_at IS NOT NULL AND manifest IS NOT NULL)",
        name="resources_active_has_manifest",
    ),
    sa.CheckConstraint(
        "status NOT IN ('deleted', 'released', 'abandoned') OR credentials IS NULL",
        name="resources_deleted_has_no_credentials",
    ),
    sa.CheckConstraint("jsonb_typeof(labels) = 'object'", name="resources_labels_object"),
    sa.CheckConstraint(
        "purge_at IS NULL OR status IN ('deleting', 'deleted', 'abandoned')", name="resources_purge_is_deleting"
    ),
    sa.CheckConstraint("grace_seconds >= 0", name="resources_grace_positive"),
    sa.CheckConstraint(one_of("snapshot", SnapshotPolicy), name="resources_snapshot_known"),
    sa.Index("resources_listing", "tenant", sa.text("created_at DESC"), sa.text("id DESC")),
    sa.Index("resources_listing_all", sa.text("created_at DESC"), sa.text("id DESC")),
    # For the listing's filters. Those of labels and external ids cost an INSERT nothing where there are none.
    sa.Index("resources_of_backend", "backend", sa.text("created_at DESC"), sa.text("id DESC")),
    sa.Index("resources_named", "name"),
    sa.Index(
        "resources_labels",
        "labels",
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
        postgresql_where=sa.text("labels <> '{}'"),
    ),
    sa.Index("resources_external", "external_id", postgresql_where=sa.text("external_id IS NOT NULL")),
    sa.Index(
        "resources_external_id",
        "tenant",
        "external_id",
        unique=True,
        postgresql_where=sa.text("external_id IS NOT NULL AND status NOT IN ('deleted', 'released')"),
    ),
    sa.Index("resources_adopted", sa.text("created_at DESC"), sa.text("id DESC"), postgresql_where=sa.text("adopted")),
    sa.Index(
        "resources_protected", sa.text("created_at DESC"), sa.text("id DESC"), postgresql_where=sa.text("protected")
    ),
    # An object belongs to one resource: a copied manifest must not give a second resource the same object. Only
    # recovery and reconciliation adopt again what a deleted resource had (`resources.register`).
    sa.Index("resources_generation_live", "generation", unique=True, postgresql_where=sa.text("status <> 'deleted'")),
    sa.Index("resources_generation_deleted", "generation", postgresql_where=sa.text("status = 'deleted'")),
    # For the percentages of brakes.
    sa.Index("resources_live_of_backend", "backend", postgresql_where=sa.text("status IN ('active', 'deleting')")),
    # For these too, for quotas, and for the lanes of jobs.
    sa.Index("resources_live", "tenant", "status", "backend", postgresql_where=sa.text("status <> 'deleted'")),
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
    # For the export of proofs, page by page.
    sa.Index("resources_purged", "purged_at", "id", postgresql_where=sa.text("status = 'deleted'")),
)
