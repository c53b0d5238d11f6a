"""What every fault must come to, by the word of the servers: each accepted DELETE done, once, and nothing left over."""

from collections import Counter
from collections.abc import Iterable

import sqlalchemy as sa

import migrations
from outbox import doctor
from tests.support.crash_cells import Deletions
from tests.support.witness import PgServer, RedisServer


def all_is_well(
    control: PgServer, deleted: Iterable[str], *, pg: PgServer, cache: RedisServer, deletions: Deletions
) -> None:
    """`deleted` are the ids of the resources whose DELETE was accepted; their jobs have ended."""
    held = "SELECT id, state FROM outbox WHERE state = 'running' OR lease_expires_at IS NOT NULL"
    assert control.query(held) == [], "no job runs, no lease lives"
    ids = [str(id) for id in deleted]
    rows = control.query("SELECT id::text, kind, status, manifest FROM resources WHERE id::text = ANY(%s)", ids)
    assert {id: status for id, _, status, _ in rows} == dict.fromkeys(ids, "deleted")
    databases = [manifest for _, kind, _, manifest in rows if kind == "postgres" and manifest]
    namespaces = [manifest for _, kind, _, manifest in rows if kind == "redis" and manifest]
    done, there = pg.drops(), pg.databases() | pg.roles()
    dropped = {m["generation"]: done[f"zz_del_{m['generation']}"] + done[m["database"]] for m in databases}
    assert dropped == dict.fromkeys(dropped, 1), "each database dropped once, by the server's own log"
    names = {n for m in databases for n in (m["database"], m["role"], *_other_names(m))}
    assert not names & there, "nothing of them on the server, no login"
    deletions.heard()
    # A prefix that was taken again died as often as it was lived in.
    lived = Counter(f"deprovisioner:gen:{m['prefix']}" for m in namespaces)
    assert {key: deletions.count[key] for key in lived} == lived, (
        "each namespace ended once, by the server's own events"
    )
    assert not any(cache.bears(manifest) for manifest in namespaces)
    engine = sa.create_engine(control.dsn.replace("postgresql:", "postgresql+psycopg2:"), poolclass=sa.NullPool)
    with engine.execution_options(isolation_level="REPEATABLE READ").begin() as snapshot:
        findings = doctor.examine(snapshot, head=migrations.head())
    # `setting_wrong` is about the session, which here is the test's own.
    broken = [f for f in findings if f.status != "warning" and f.check.code != "setting_wrong"]
    assert [(f.check.code, f.sample, f.error) for f in broken] == []


def _other_names(manifest: dict) -> tuple[str, str]:
    return f"zz_new_{manifest['generation']}", f"zz_del_{manifest['generation']}"
