"""A backend's server moves, or is gone: identities are rewritten under a hold of its own; teardowns end abandoned."""

import importlib

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0020"
branch_labels = None
depends_on = None

_0014 = importlib.import_module("migrations.versions.0014_the_manifest_is_guarded")
_0017 = importlib.import_module("migrations.versions.0017_adoption_at_scale")

CAUSES = (
    "cause IN ('operator', 'brake', 'rewound', 'rebind', 'retired')",
    "cause IN ('operator', 'brake', 'rewound')",
)
_STATUSES = "'provisioning', 'active', 'deleting', 'deleted', 'restoring', 'releasing', 'released'"
# By table: what each CHECK is called, what it says now, and said before.
CHECKS = {
    "resources": (
        ("resources_status_known", f"status IN ({_STATUSES}, 'abandoned')", f"status IN ({_STATUSES})"),
        (
            "resources_deleting_since",
            "(status IN ('deleting', 'deleted', 'abandoned')) = (deleted_at IS NOT NULL)",
            "(status IN ('deleting', 'deleted')) = (deleted_at IS NOT NULL)",
        ),
        (
            "resources_deleted_has_no_credentials",
            "status NOT IN ('deleted', 'released', 'abandoned') OR credentials IS NULL",
            "status NOT IN ('deleted', 'released') OR credentials IS NULL",
        ),
        (
            "resources_purge_is_deleting",
            "purge_at IS NULL OR status IN ('deleting', 'deleted', 'abandoned')",
            "purge_at IS NULL OR status IN ('deleting', 'deleted')",
        ),
    ),
    "outbox": (
        (
            "outbox_state_known",
            "state IN ('pending', 'running', 'stuck', 'succeeded', 'cancelled', 'abandoned')",
            "state IN ('pending', 'running', 'stuck', 'succeeded', 'cancelled')",
        ),
        (
            "outbox_final_is_finished",
            "(state IN ('succeeded', 'cancelled', 'abandoned')) = (finished_at IS NOT NULL)",
            "(state IN ('succeeded', 'cancelled')) = (finished_at IS NOT NULL)",
        ),
    ),
    "approvals": (
        (
            "approvals_action_known",
            "action IN ('resolve', 'redrive', 'purge', 'abandon')",
            "action IN ('resolve', 'redrive', 'purge')",
        ),
    ),
    "holds": (("holds_cause_known", *CAUSES),),
}
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
# What is final; `{}` is what this revision adds to it.
FINAL_TRIGGERS = {
    "outbox_final_is_final": """
        BEFORE UPDATE ON outbox FOR EACH ROW WHEN (OLD.state IN ('succeeded', 'cancelled'{}))
          EXECUTE FUNCTION deprovisioner_forbid('a succeeded or cancelled job is final')
    """,
    "outbox_live_stays": """
        BEFORE DELETE ON outbox FOR EACH ROW WHEN (OLD.state NOT IN ('succeeded', 'cancelled'{}))
          EXECUTE FUNCTION deprovisioner_forbid('a job that is not final may not be removed')
    """,
}
CREDENTIALS = _0017.CREDENTIALS.replace("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER")
# Only two operators say so, of an object whose server is gone; and then it stays so.
ABANDONED = """
    CREATE FUNCTION deprovisioner_abandoned() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.status = 'abandoned' THEN
            RAISE EXCEPTION 'resource %: an abandoned resource is final', OLD.id
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF NOT EXISTS (SELECT FROM holds
                        WHERE cause = 'retired' AND scope = 'backend' AND subject = NEW.backend AND released_at IS NULL)
        THEN
            RAISE EXCEPTION 'resource %: backend % is not retired, so nothing on it is abandoned', NEW.id, NEW.backend
                  USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$
"""
ABANDONED_TRIGGER = """
    CREATE TRIGGER resources_abandoned_is_final BEFORE UPDATE ON resources FOR EACH ROW
      WHEN (OLD.status = 'abandoned' OR NEW.status = 'abandoned') EXECUTE FUNCTION deprovisioner_abandoned()
"""
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
    with op.get_context().autocommit_block():  # each step may be done again
        for table, checks in CHECKS.items():
            for name, now, _ in checks:
                op.execute(
                    f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} CHECK ({now}) NOT VALID"
                )
        op.execute("SET statement_timeout = 0")  # no request waits for the next statements
        for table, checks in CHECKS.items():
            for name, _, _ in checks:
                op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        op.execute("SET statement_timeout = '60s'")  # as migrations/env.py has it
    op.create_index(
        ONE_OF_BACKEND,
        "holds",
        ["cause", "subject"],
        unique=True,
        postgresql_where=sa.text("cause IN ('rebind', 'retired') AND released_at IS NULL"),
    )
    for function in (REBOUND, REBINDABLE, MOVES, BY_OWNER, EVENT_TRIGGER, ABANDONED, ABANDONED_TRIGGER):
        op.execute(function)
    for name, says in (TRIGGERS | BACKEND_TRIGGERS).items():
        _trigger(name, says)
    for name, says in FINAL_TRIGGERS.items():
        _trigger(name, says.format(", 'abandoned'"))
    op.execute(CREDENTIALS.format("('deleted', 'released', 'abandoned')"))


def downgrade() -> None:
    op.execute(CREDENTIALS.format("('deleted', 'released')"))
    for name, says in FINAL_TRIGGERS.items():
        _trigger(name, says.format(""))
    op.execute("DROP TRIGGER resources_abandoned_is_final ON resources")
    op.execute("DROP FUNCTION deprovisioner_abandoned()")
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
    for table, checks in CHECKS.items():
        for name, _, before in checks:
            op.drop_constraint(name, table)
            op.create_check_constraint(name, table, before)  # fails while a row is in a state that it does not know
