"""Settings for the planner: no sequential scan when an event is chained, and earlier vacuum and analyze."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A connection keeps the plan of the chain trigger's SELECT for as long as it lives. A plan made while there were few
# events would read all events for each new one.
CHAIN = "ALTER FUNCTION deprovisioner_chain() {} enable_seqscan"
# Every job changes its rows four times. By default, vacuum waits until a fifth of the table is dead: too late for
# claims.
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
