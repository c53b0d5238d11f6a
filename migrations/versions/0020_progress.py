"""How far the verb that a job runs has come, as its worker last told with a heartbeat."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("progress", JSONB))


def downgrade() -> None:
    op.drop_column("outbox", "progress")
