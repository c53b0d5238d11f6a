"""What the planner may not get wrong while the tables are small, and how soon it hears that they no longer are."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A connection keeps the plan of the chain's look for as long as it lives. Made while there were few events, it would
# read all of them, for each new one.
CHAIN = "ALTER FUNCTION deprovisioner_chain() {} enable_seqscan"
# Every job changes its rows four times: waiting for a fifth of the table to be dead is too late for the next claim.
TABLES = ("outbox", "resources")
VACUUM = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_analyze_threshold": "1000",
    "autovacuum_vacuum_cost_delay": "0",
}


def upgrade() -> None:
    op.execute(CHAIN.format("SET") + " = off")
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {value}' for name, value in VACUUM.items())})")


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(VACUUM)})")
    op.execute(CHAIN.format("RESET"))
