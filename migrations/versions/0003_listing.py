"""Indexes for listings: pages filtered by backend, age, error or a rare state or kind read no finished jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("outbox_of_backend", "outbox", ["backend", "id"])
    op.create_index("outbox_age", "outbox", ["created_at"], postgresql_using="brin")
    op.create_index("outbox_failed", "outbox", ["id"], postgresql_where=sa.text("last_error IS NOT NULL"))
    op.create_index("outbox_cancelled", "outbox", ["id"], postgresql_where=sa.text("state = 'cancelled'"))
    op.create_index("outbox_restores", "outbox", ["id"], postgresql_where=sa.text("kind = 'restore'"))


def downgrade() -> None:
    op.drop_index("outbox_restores", table_name="outbox")
    op.drop_index("outbox_cancelled", table_name="outbox")
    op.drop_index("outbox_failed", table_name="outbox")
    op.drop_index("outbox_age", table_name="outbox")
    op.drop_index("outbox_of_backend", table_name="outbox")
