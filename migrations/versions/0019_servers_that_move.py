"""A backend's server moves: identities are rewritten under a hold of its own, each with the event that records it."""

import importlib

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0020"
branch_labels = None
depends_on = None

_0014 = importlib.import_module("migrations.versions.0014_the_manifest_is_guarded")

CAUSES = (
    "cause IN ('operator', 'brake', 'rewound', 'rebind', 'retired')",
    "cause IN ('operator', 'brake', 'rewound')",
)
ONE_OF_BACKEND = "holds_one_of_backend"
# The event of this transaction says what was, and what is; and the backend's hold for the rebind is in force.
REBOUND = """
    CREATE FUNCTION deprovisioner_rebound(resource uuid, home text, what text, was jsonb, is_now jsonb)
    RETURNS boolean LANGUAGE sql STABLE AS $$
        SELECT EXISTS (SELECT FROM events
                        WHERE resource_id = resource AND event = 'rebound' AND xmin = pg_current_xact_id()::xid
                          AND detail -> 'was' -> what = was AND detail -> 'is' -> what = is_now)
           AND EXISTS (SELECT FROM holds
                        WHERE cause = 'rebind' AND scope = 'backend' AND subject = home AND released_at IS NULL)
    $$
"""
# The service's role, which API and workers have, may insert events and holds: it could forge both.
BY_OWNER = """
    CREATE FUNCTION deprovisioner_by_owner() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
            RAISE EXCEPTION 'only the owner of the tables may rebind: permission denied'
                  USING ERRCODE = 'insufficient_privilege';
        END IF;
        RETURN NEW;
    END $$
"""
MANIFEST = _0014.MANIFEST.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
_END = "kept.value) END) THEN"
assert MANIFEST.count(_END) == 1  # noqa: S101 - the text that this revision builds on
REBINDABLE = MANIFEST.replace(
    _END,
    """kept.value) END)
           AND NOT deprovisioner_rebound(NEW.id, NEW.backend, 'manifest', OLD.manifest, NEW.manifest) THEN""",
)
MOVES = """
    CREATE FUNCTION deprovisioner_moves() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        resource uuid = CASE TG_TABLE_NAME WHEN 'resources' THEN to_jsonb(NEW) ->> 'id'
                                           ELSE to_jsonb(NEW) ->> 'resource_id' END;
    BEGIN
        IF NOT deprovisioner_rebound(resource, NEW.backend, 'backend', to_jsonb(OLD.backend), to_jsonb(NEW.backend)) THEN
            RAISE EXCEPTION 'a % keeps its backend: only `backends rebind` changes it',
                  CASE TG_TABLE_NAME WHEN 'outbox' THEN 'job' ELSE 'resource' END
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NULL;
    END $$
"""
TRIGGERS = {
    "resources_identity_stays": """
        BEFORE UPDATE OF id, tenant, kind, adopted, generation, created_at ON resources FOR EACH ROW
          WHEN ((NEW.id, NEW.tenant, NEW.kind, NEW.adopted, NEW.generation, NEW.created_at)
                IS DISTINCT FROM
                (OLD.id, OLD.tenant, OLD.kind, OLD.adopted, OLD.generation, OLD.created_at))
          EXECUTE FUNCTION deprovisioner_forbid('a resource keeps its tenant, kind, backend and generation')
    """,
    "outbox_origin_stays": """
        BEFORE UPDATE OF id, request_id ON outbox FOR EACH ROW
          WHEN ((NEW.id, NEW.request_id) IS DISTINCT FROM (OLD.id, OLD.request_id))
          EXECUTE FUNCTION deprovisioner_forbid('a job keeps its backend and its request')
    """,
}
# At the end of their statements, as `resources_manifest_recorded`.
BACKEND_TRIGGERS = {
    f"{table}_backend_recorded": f"""
        AFTER UPDATE OF backend ON {table} FOR EACH ROW WHEN (NEW.backend IS DISTINCT FROM OLD.backend)
          EXECUTE FUNCTION deprovisioner_moves()
    """
    for table in ("resources", "outbox")
}
EVENT_TRIGGER = """
    CREATE TRIGGER events_rebound_by_owner BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.event = 'rebound')
      EXECUTE FUNCTION deprovisioner_by_owner()
"""


def _trigger(name: str, says: str) -> None:
    op.execute(f"CREATE OR REPLACE TRIGGER {name} {says}")


def upgrade() -> None:
    op.drop_constraint("holds_cause_known", "holds")
    op.create_check_constraint("holds_cause_known", "holds", CAUSES[0])
    op.create_index(
        ONE_OF_BACKEND,
        "holds",
        ["cause", "subject"],
        unique=True,
        postgresql_where=sa.text("cause IN ('rebind', 'retired') AND released_at IS NULL"),
    )
    for function in (REBOUND, REBINDABLE, MOVES, BY_OWNER, EVENT_TRIGGER):
        op.execute(function)
    for name, says in (TRIGGERS | BACKEND_TRIGGERS).items():
        _trigger(name, says)


def downgrade() -> None:
    for name in BACKEND_TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON {name.partition('_')[0]}")
    for name in TRIGGERS:
        _trigger(name, _0014.TRIGGERS[name])
    op.execute(MANIFEST)
    op.execute("DROP TRIGGER events_rebound_by_owner ON events")
    op.execute("DROP FUNCTION deprovisioner_by_owner()")
    op.execute("DROP FUNCTION deprovisioner_moves()")
    op.execute("DROP FUNCTION deprovisioner_rebound(uuid, text, text, jsonb, jsonb)")
    op.drop_index(ONE_OF_BACKEND, table_name="holds")
    op.drop_constraint("holds_cause_known", "holds")
    op.create_check_constraint("holds_cause_known", "holds", CAUSES[1])  # fails while a hold has a newer cause
