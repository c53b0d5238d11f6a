"""A quarantine and its release: what was there before comes back, wherever either of them died or stood still."""

import signal
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions

from outbox.errors import ClaimLost, Refused, Transient, Unavailable
from outbox.rows import Json
from tests.support import accounts
from tests.support.quarantines import QUARANTINE, RELEASE, Acting, shown, stopped
from tests.support.witness import PgServer, eventually
from worker.backends import Absent, Same
from worker.backends.postgres import Postgres, prove, quarantine, session

# A release's own: how long a customer may have to wait, whatever the size of its database.
RELEASE_SECONDS = 5.0


def a_customer(backend: Postgres) -> tuple[Json, Json]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials), plan.credentials


def put(credentials: Json) -> None:
    with closing(psycopg2.connect(credentials["dsn"])) as mine:
        mine.cursor().execute("CREATE TABLE precious AS SELECT 42 AS n")
        mine.commit()


def can_log_in(credentials: Json) -> bool:
    try:
        psycopg2.connect(credentials["dsn"]).close()
    except psycopg2.OperationalError:
        return False
    return True


# What an administrator may have set, and what of it lets the role in.
@pytest.mark.parametrize(
    "before",
    [
        (),
        ('ALTER DATABASE "{database}" CONNECTION LIMIT 7',),
        ('ALTER ROLE "{role}" CONNECTION LIMIT 3', 'ALTER DATABASE "{database}" CONNECTION LIMIT 0'),
        ('ALTER ROLE "{role}" NOLOGIN',),
        ('ALTER DATABASE "{database}" ALLOW_CONNECTIONS false',),
        ("ALTER ROLE \"{role}\" VALID UNTIL '2099-01-01'",),
    ],
    ids=lambda before: "-".join(words.split('"')[-1].strip() for words in before) or "as provisioned",
)
def test_what_was_there_before_a_quarantine_comes_back_exactly(
    anywhere: tuple[Postgres, PgServer], before: tuple[str, ...]
) -> None:
    backend, pg = anywhere
    manifest, credentials = a_customer(backend)
    for statement in before:
        pg.query(statement.format(**manifest))
    was, could = shown(pg, manifest), can_log_in(credentials)
    for _ in range(2):
        for _ in range(2):
            backend.quarantine(manifest)
        assert not can_log_in(credentials)
        assert [row[1] for row in shown(pg, manifest)] == [False, False]
        assert f"zz_del_{manifest['generation']}" in pg.databases()
        for _ in range(2):
            backend.release(manifest)
            assert shown(pg, manifest) == was
        assert can_log_in(credentials) == could
    backend.quarantine(manifest)
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert not pg.bears(manifest)


@pytest.mark.parametrize("login", ["LOGIN PASSWORD 'p'", "NOLOGIN"])
def test_what_an_adopted_object_was_comes_back_with_the_words_of_its_comment(
    backend: Postgres, pg: PgServer, login: str
) -> None:
    name = f"orders_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {name} {login}")
    accounts.adoptable(pg, name, name)
    pg.query(f"COMMENT ON DATABASE {name} IS 'orders [closed by deprovisioner; before: LOGIN] of acme '")
    pg.query(f"COMMENT ON ROLE {name} IS '100 %% theirs'")
    pg.query(f"ALTER DATABASE {name} CONNECTION LIMIT 5")
    generation = uuid.uuid4()
    manifest = backend.adopt({"database": name, "role": name, "generation": str(generation)}, generation)
    was = shown(pg, manifest)
    backend.quarantine(manifest)
    assert isinstance(backend.inspect(manifest), Same)
    backend.release(manifest)
    assert shown(pg, manifest) == was
    assert backend.prove(manifest, None) == {
        "database": name,
        "allows_connections": True,
        "role": name,
        "may_log_in": login != "NOLOGIN",
    }
    backend.teardown(manifest, 1)


def test_a_database_without_a_role_is_quarantined_and_released(backend: Postgres, pg: PgServer) -> None:
    name = f"orders_{uuid.uuid4().hex}"
    accounts.adoptable(pg, name)
    generation = uuid.uuid4()
    manifest = backend.adopt({"database": name, "role": None, "generation": str(generation)}, generation)
    was = shown(pg, manifest)
    backend.quarantine(manifest)
    assert name not in pg.databases()
    backend.release(manifest)
    assert shown(pg, manifest) == was
    assert backend.prove(manifest, None) == {"database": name, "allows_connections": True}
    backend.teardown(manifest, 1)


def _prepared(pg: PgServer, manifest: Json) -> list[tuple[Any, ...]]:
    return pg.query("SELECT gid FROM pg_prepared_xacts WHERE owner = %s", manifest["role"])


def test_a_prepared_transaction_outlives_a_quarantine_and_can_be_committed_after_a_restore(
    anywhere: tuple[Postgres, PgServer],
) -> None:
    backend, pg = anywhere
    manifest, credentials = a_customer(backend)
    with closing(psycopg2.connect(credentials["dsn"])) as mine:
        mine.tpc_begin(mine.xid(1, manifest["database"], "b"))
        mine.cursor().execute("CREATE TABLE precious AS SELECT 42 AS n")
        mine.tpc_prepare()
    was = shown(pg, manifest)
    for _ in range(2):
        backend.quarantine(manifest)
    assert [row[1] for row in shown(pg, manifest)] == [False, False]
    assert len(_prepared(pg, manifest)) == 1
    assert manifest["database"] in pg.databases(), "the server renames no database with a prepared transaction"
    backend.release(manifest)
    assert shown(pg, manifest) == was
    with closing(psycopg2.connect(credentials["dsn"])) as mine:
        mine.tpc_commit(mine.tpc_recover()[0])
        mine.cursor().execute("SELECT n FROM precious")
    backend.quarantine(manifest)
    assert f"zz_del_{manifest['generation']}" in pg.databases()
    backend.teardown(manifest, 1)
    assert not pg.bears(manifest)


def test_a_teardown_after_a_quarantine_rolls_back_what_was_prepared(backend: Postgres, pg: PgServer) -> None:
    manifest, credentials = a_customer(backend)
    with closing(psycopg2.connect(credentials["dsn"])) as mine:
        mine.tpc_begin(mine.xid(1, manifest["database"], "b"))
        mine.cursor().execute("CREATE TABLE t (n int)")
        mine.tpc_prepare()
    pg.query(f'ALTER DATABASE "{manifest["database"]}" CONNECTION LIMIT 0')
    backend.quarantine(manifest)
    backend.teardown(manifest, 1)
    assert not pg.bears(manifest)


@pytest.mark.parametrize(("verb", "boundaries"), [("quarantine", QUARANTINE), ("release", RELEASE)])
def test_these_are_all_boundaries_of_the_verb(
    backend: Postgres, pg: PgServer, tmp_path: Path, verb: str, boundaries: tuple[str, ...]
) -> None:
    manifest, _ = a_customer(backend)
    if verb == "release":
        backend.quarantine(manifest)
    trace = tmp_path / "trace"
    assert Acting(verb, pg.service_dsn, manifest, tmp_path, CRASH_TRACE=str(trace)).ends() == 0
    assert trace.read_text().split("\n")[:-1] == [name.partition("#")[0] for name in boundaries]
    backend.teardown(manifest, 1)


# Half of what each verb does; `make proof` has all boundaries.
QUICK = {
    ("quarantine", "after:COMMIT"),
    ("quarantine", "after:COMMIT#2"),
    ("quarantine", "after:ALTER DATABASE old RENAME"),
    ("release", "after:ALTER DATABASE old RENAME"),
    ("release", "after:COMMENT ON ROLE name"),
}
CRASHES = [
    pytest.param(
        verb,
        f"{moment}:{at}",
        id=f"{verb}-{moment}-{at}".replace(" ", "_"),
        marks=[] if (verb, f"{moment}:{at}") in QUICK else [pytest.mark.proof],
    )
    for verb, boundaries in (("quarantine", QUARANTINE), ("release", RELEASE))
    for at in boundaries
    for moment in ("before", "after")
]


@pytest.mark.parametrize(("verb", "at"), CRASHES)
def test_a_worker_killed_at_any_boundary_leaves_what_both_verbs_finish(
    backend: Postgres, pg: PgServer, tmp_path: Path, verb: str, at: str
) -> None:
    manifest, credentials = a_customer(backend)
    put(credentials)
    pg.query(f'ALTER ROLE "{manifest["role"]}" CONNECTION LIMIT 3')
    pg.query(f'ALTER DATABASE "{manifest["database"]}" CONNECTION LIMIT 7')
    was = shown(pg, manifest)

    def dies() -> None:
        if verb == "release":
            backend.quarantine(manifest)
        acting = Acting(verb, pg.service_dsn, manifest, tmp_path, CRASH_AT=at)
        assert acting.ends() == -signal.SIGKILL
        assert isinstance(backend.inspect(manifest), Same)

    dies()
    backend.release(manifest)
    assert shown(pg, manifest) == was
    assert backend.prove(manifest, credentials)
    dies()
    backend.quarantine(manifest)
    assert [row[:2] for row in shown(pg, manifest)] == [
        (f"zz_del_{manifest['generation']}", False),
        (manifest["role"], False),
    ]
    backend.release(manifest)
    assert shown(pg, manifest) == was
    assert pg.query("SELECT n FROM precious", database=manifest["database"]) == [(42,)]
    backend.teardown(manifest, 1)
    assert not pg.bears(manifest)


# Where a worker stands still: with the lock, in a transaction, and after it.
ZOMBIES = ["before:end sessions", "before:ALTER ROLE role NOLOGIN", "after:ALTER ROLE role NOLOGIN", "after:COMMIT"]
ZOMBIES += ["after:ALTER DATABASE name ALLOW_CONNECTIONS", "before:BEGIN#3", "after:ALTER DATABASE old RENAME"]
ZOMBIES += ["before:COMMIT#3", "after:COMMIT#3"]


@pytest.mark.parametrize("at", ZOMBIES)
def test_a_worker_that_stands_still_in_a_quarantine_ends_nothing_after_a_restore(
    anywhere: tuple[Postgres, PgServer], tmp_path: Path, at: str
) -> None:
    backend, pg = anywhere
    manifest, credentials = a_customer(backend)
    put(credentials)
    was = shown(pg, manifest)
    dsn = pg.service_dsn if "deprovisioner_service" in backend._server.dsn else pg.dsn
    with stopped("quarantine", dsn, manifest, tmp_path, at) as zombie:
        zombie.lost.touch()
        began = time.monotonic()
        backend.release(manifest)
        assert time.monotonic() - began < RELEASE_SECONDS
        assert backend.prove(manifest, credentials)
        assert shown(pg, manifest) == was
        zombie.wake()
        zombie.ends()
        assert shown(pg, manifest) == was
        assert pg.query("SELECT n FROM precious", database=manifest["database"]) == [(42,)]
        assert can_log_in(credentials)
    assert pg.drops_of(manifest) == 0
    backend.teardown(manifest, 1)


def test_a_worker_that_loses_its_claim_while_it_waits_for_the_lock_changes_nothing(
    backend: Postgres, pg: PgServer, tmp_path: Path
) -> None:
    manifest, credentials = a_customer(backend)
    was = shown(pg, manifest)
    with (
        closing(psycopg2.connect(extensions.make_dsn(pg.dsn, dbname=accounts.NAME))) as administrator,
        closing(psycopg2.connect(credentials["dsn"])) as mine,
    ):
        administrator.cursor().execute("SELECT pg_advisory_lock(%s)", (session.lock_key(manifest["database"]),))
        waits = Acting("quarantine", pg.service_dsn, manifest, tmp_path)
        try:
            waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            eventually(lambda: pg.query(waiting), what="it waits")
            waits.lost.touch()
            administrator.close()
            assert waits.ends() == 0, "its claim is lost: so said `still` behind the lock"
            alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
            assert pg.query(alive, mine.info.backend_pid) == [(1,)], "no session was ended for it"
            assert shown(pg, manifest) == was
        finally:
            waits.kill()
    backend.teardown(manifest, 1)


def test_a_quarantine_goes_on_where_a_worker_stands_still_in_it(
    backend: Postgres, pg: PgServer, tmp_path: Path
) -> None:
    manifest, credentials = a_customer(backend)
    was = shown(pg, manifest)
    with stopped("quarantine", pg.service_dsn, manifest, tmp_path, "before:BEGIN#2") as zombie:
        zombie.lost.touch()
        began = time.monotonic()
        backend.quarantine(manifest)
        assert time.monotonic() - began < RELEASE_SECONDS
        closed = shown(pg, manifest)
        zombie.wake()
        zombie.ends()
        assert shown(pg, manifest) == closed
        assert not can_log_in(credentials)
    backend.release(manifest)
    assert shown(pg, manifest) == was
    backend.teardown(manifest, 1)


@pytest.mark.parametrize("at", ["before:end sessions", "before:BEGIN", "after:ALTER ROLE role LOGIN", "before:COMMIT"])
def test_a_worker_that_stands_still_in_a_release_opens_nothing_that_is_deleted_again(
    backend: Postgres, pg: PgServer, tmp_path: Path, at: str
) -> None:
    manifest, credentials = a_customer(backend)
    backend.quarantine(manifest)
    with stopped("release", pg.service_dsn, manifest, tmp_path, at) as zombie:
        backend.release(manifest)  # by its successor
        zombie.lost.touch()
        backend.quarantine(manifest)
        closed = shown(pg, manifest)
        zombie.wake()
        zombie.ends()
        assert shown(pg, manifest) == closed
        assert not can_log_in(credentials)
    backend.teardown(manifest, 1)


@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_worker_whose_claim_is_lost_changes_nothing(backend: Postgres, pg: PgServer, verb: str) -> None:
    manifest, credentials = a_customer(backend)
    if verb == "release":
        backend.quarantine(manifest)
    was, asked = shown(pg, manifest), []

    def lost() -> None:
        asked.append(1)
        raise ClaimLost("lost")

    with closing(psycopg2.connect(pg.service_dsn)) as valid:  # as of a later claim
        valid.cursor().execute("SELECT pg_advisory_lock(%s)", (session.lock_key(manifest["database"]),))
        with pytest.raises(ClaimLost):
            getattr(backend, verb)(manifest, lost)
        assert pg.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", valid.info.backend_pid) == [(1,)]
    assert asked == [1]
    assert shown(pg, manifest) == was
    assert can_log_in(credentials) == (verb == "quarantine")
    backend.teardown(manifest, 1)


@pytest.mark.parametrize("lost_at", range(1, 5))
def test_the_claim_is_asked_for_again_behind_each_wait(backend: Postgres, pg: PgServer, lost_at: int) -> None:
    """Both ask before the lock and behind it, a quarantine before its rename too."""
    manifest, _ = a_customer(backend)
    asked: list[str] = []

    def still() -> None:
        asked.append("still")
        if len(asked) == lost_at:
            raise ClaimLost("lost")

    for verb, times in (("quarantine", 3), ("release", 2)):
        asked.clear()
        if lost_at <= times:
            with pytest.raises(ClaimLost):
                getattr(backend, verb)(manifest, still)
            assert (manifest["database"] in pg.databases()) == (verb == "quarantine")
            asked[:] = ["still"] * 10
            getattr(backend, verb)(manifest, still)
        else:
            getattr(backend, verb)(manifest, still)
            assert len(asked) == times
    backend.teardown(manifest, 1)


def test_a_worker_whose_session_a_release_has_ended_is_told_that_its_claim_is_lost(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the server is away: that would open the breaker of the whole backend."""
    manifest, _ = a_customer(backend)
    honest, lost = session.Session.execute, []

    def taken_over(self: session.Session, statement: str, **words: Any) -> None:
        if "RENAME" in statement and not lost:
            lost.append(1)
            Postgres(pg.service_dsn).release(manifest)
        honest(self, statement, **words)

    def still() -> None:
        if lost:
            raise ClaimLost("lost")

    monkeypatch.setattr(session.Session, "execute", taken_over)
    with pytest.raises(ClaimLost):
        backend.quarantine(manifest, still)
    monkeypatch.undo()
    lost.clear()
    monkeypatch.setattr(session.Session, "execute", taken_over)
    with pytest.raises(Unavailable):
        backend.quarantine(manifest)
    monkeypatch.undo()
    backend.teardown(manifest, 1)


@pytest.mark.proof
def test_a_release_ends_our_own_sessions_inside_and_not_those_of_others_at_the_lock(
    backend: Postgres, pg: PgServer
) -> None:
    manifest, credentials = a_customer(backend)
    backend.quarantine(manifest)
    dying, key = f"zz_del_{manifest['generation']}", session.lock_key(manifest["database"])
    pg.query(f'ALTER DATABASE "{dying}" ALLOW_CONNECTIONS true')
    ours = psycopg2.connect(extensions.make_dsn(pg.service_dsn, dbname=dying))  # as a dump would be
    with closing(psycopg2.connect(extensions.make_dsn(pg.dsn, dbname=accounts.NAME))) as theirs:
        theirs.cursor().execute("SELECT pg_advisory_lock(%s)", (key,))
        with pytest.raises(Transient, match=f"pid {theirs.info.backend_pid} of 'postgres'"):
            backend.release(manifest)
        theirs.cursor().execute("SELECT 1")
    ours.cursor().execute("SELECT 1")
    backend.release(manifest)
    with pytest.raises(psycopg2.OperationalError):
        ours.cursor().execute("SELECT 1")
    assert can_log_in(credentials)
    backend.teardown(manifest, 1)


def test_a_release_leaves_workers_at_other_objects_alone(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest, _), (others, _) = a_customer(backend), a_customer(backend)
    backend.quarantine(manifest)
    key = session.lock_key(manifest["database"])
    with (
        closing(psycopg2.connect(pg.service_dsn)) as first,
        closing(psycopg2.connect(pg.service_dsn)) as second,
    ):
        first.cursor().execute("SELECT pg_advisory_lock(%s)", (key,))
        second.cursor().execute("SELECT pg_advisory_lock(%s)", (session.lock_key(others["database"]),))
        backend.release(manifest)
        alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        assert pg.query(alive, second.info.backend_pid) == [(1,)]
        with pytest.raises(psycopg2.OperationalError):
            first.cursor().execute("SELECT 1")
    for one in (manifest, others):
        backend.teardown(one, 1)


def test_words_like_a_note_elsewhere_in_a_comment_are_the_customer_s(backend: Postgres, pg: PgServer) -> None:
    name, generation = f"orders_{uuid.uuid4().hex}", uuid.uuid4()
    accounts.adoptable(pg, name)
    mark = f"deprovisioner gen={generation}"
    pg.query(
        f"COMMENT ON DATABASE {name} IS '[closed by deprovisioner; before: ALLOW_CONNECTIONS false] {mark} x {mark}'"
    )
    manifest = backend.adopt({"database": name, "role": None, "generation": str(generation)}, generation)
    was = shown(pg, manifest)
    backend.quarantine(manifest)
    backend.release(manifest)
    assert shown(pg, manifest) == was
    backend.teardown(manifest, 1)


def test_a_release_names_the_superuser_who_is_inside(backend: Postgres, pg: PgServer) -> None:
    manifest, credentials = a_customer(backend)
    backend.quarantine(manifest)
    dying = f"zz_del_{manifest['generation']}"
    pg.query(f'ALTER DATABASE "{dying}" ALLOW_CONNECTIONS true')
    with (
        closing(psycopg2.connect(extensions.make_dsn(pg.dsn, dbname=dying, application_name="psql"))),
        pytest.raises(Transient, match=r"'postgres' \(psql\)"),
    ):
        backend.release(manifest)
    assert not can_log_in(credentials)
    backend.release(manifest)
    assert can_log_in(credentials)
    backend.teardown(manifest, 1)


@pytest.mark.parametrize("verb", ["quarantine", "teardown"])
def test_a_database_that_was_opened_in_quarantine_is_closed_again_with_what_came_in(
    backend: Postgres, pg: PgServer, verb: str
) -> None:
    """As where a worker died while it let itself in for a snapshot."""
    manifest, _ = a_customer(backend)
    was = shown(pg, manifest)
    backend.quarantine(manifest)
    closed, dying = shown(pg, manifest), f"zz_del_{manifest['generation']}"
    pg.query(f'ALTER DATABASE "{dying}" ALLOW_CONNECTIONS true')
    with closing(psycopg2.connect(extensions.make_dsn(pg.service_dsn, dbname=dying))):
        if verb == "teardown":
            backend.teardown(manifest, 1)
            assert not pg.bears(manifest)
            return
        backend.quarantine(manifest)
        assert shown(pg, manifest) == closed
        assert pg.query("SELECT 1 FROM pg_stat_activity WHERE datname = %s", dying) == []
    backend.release(manifest)
    assert shown(pg, manifest) == was
    backend.teardown(manifest, 1)


def test_a_stranger_s_database_under_the_quarantine_s_name_loses_no_session_to_a_release(
    backend: Postgres, pg: PgServer
) -> None:
    manifest, _ = a_customer(backend)
    dying = f"zz_del_{manifest['generation']}"
    accounts.adoptable(pg, dying)
    with closing(psycopg2.connect(extensions.make_dsn(pg.service_dsn, dbname=dying))) as theirs:
        backend.release(manifest)
        theirs.cursor().execute("SELECT 1")
    assert {dying, manifest["database"]} <= pg.databases()
    pg.query(f'DROP DATABASE "{dying}"')
    backend.teardown(manifest, 1)
    with pytest.raises(Refused, match="no longer there"):
        backend.release(manifest)


class TestProof:
    def test_a_login_with_the_credentials_on_record_is_the_proof(self, anywhere: tuple[Postgres, PgServer]) -> None:
        backend, _ = anywhere
        manifest, credentials = a_customer(backend)
        assert backend.prove(manifest, credentials) == {
            "database": manifest["database"],
            "allows_connections": True,
            "role": manifest["role"],
            "may_log_in": True,
            "logged_in_as": manifest["role"],
        }
        backend.teardown(manifest, 1)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ("ALTER ROLE \"{role}\" PASSWORD 'another'", "password authentication failed"),
            ('ALTER ROLE "{role}" NOLOGIN', "not permitted to log in"),
            ('ALTER ROLE "{role}" CONNECTION LIMIT 0', "too many connections"),
            ('ALTER DATABASE "{database}" ALLOW_CONNECTIONS false', "not currently accepting connections"),
        ],
    )
    def test_a_login_that_fails_is_transient_and_does_not_tell_the_password(
        self, backend: Postgres, pg: PgServer, wrong: str, words: str
    ) -> None:
        manifest, credentials = a_customer(backend)
        pg.query(wrong.format(**manifest))
        with pytest.raises(Transient, match=words) as failed:
            backend.prove(manifest, credentials)
        chain: BaseException | None = failed.value
        while chain is not None:
            assert credentials["password"] not in repr(chain)
            chain = chain.__cause__
        assert len(str(failed.value)) < 1_000
        backend.teardown(manifest, 1)

    def test_what_a_customer_has_set_on_its_role_does_not_stop_the_proof(self, backend: Postgres, pg: PgServer) -> None:
        manifest, credentials = a_customer(backend)
        other = f"other_{uuid.uuid4().hex}"
        pg.query(f"CREATE ROLE {other}")
        pg.query(f'GRANT {other} TO "{manifest["role"]}"')
        for setting in ("statement_timeout = 1", "transaction_timeout = 1", f"role = {other}", "search_path = x"):
            pg.query(f'ALTER ROLE "{manifest["role"]}" SET {setting}')
        assert backend.prove(manifest, credentials)["logged_in_as"] == manifest["role"]
        pg.query(f'ALTER ROLE "{manifest["role"]}" RESET ALL')
        backend.teardown(manifest, 1)
        pg.query(f"DROP ROLE {other}")

    def test_a_server_that_is_away_is_unavailable_and_a_login_elsewhere_is_no_proof(
        self, backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest, credentials = a_customer(backend)
        with pytest.raises(Unavailable):
            Postgres("postgresql://x@127.0.0.1:1/x").prove(manifest, credentials)
        monkeypatch.setattr(prove, "_logged_in", lambda *_: psycopg2.connect(pg.dsn))
        with pytest.raises(Transient, match="led to"):
            backend.prove(manifest, credentials)
        monkeypatch.undo()
        backend.teardown(manifest, 1)

    def test_what_is_still_in_quarantine_is_not_shown_as_unlocked(
        self, backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest, _ = a_customer(backend)
        backend.quarantine(manifest)
        with pytest.raises(Transient, match=r"database 'db_.*' is still in quarantine"):
            backend.prove(manifest, None)
        backend.release(manifest)
        for left_out, words in (("role", "database 'db_"), ("database", "role 'usr_")):
            with monkeypatch.context() as patch:
                patch.setattr(quarantine, f"_shut_{left_out}", lambda *_, **__: None)
                patch.setattr(quarantine, "_rename_away", lambda *_: None)
                backend.quarantine(manifest)
            with pytest.raises(Transient, match=f"{words}.* is still in quarantine"):
                backend.prove(manifest, None)
            backend.release(manifest)
        assert backend.prove(manifest, None)["may_log_in"]
        pg.query(f'COMMENT ON DATABASE "{manifest["database"]}" IS NULL')
        with pytest.raises(Refused):
            backend.prove(manifest, None)
        pg.query(f"COMMENT ON DATABASE \"{manifest['database']}\" IS 'deprovisioner gen={manifest['generation']}'")
        backend.teardown(manifest, 1)
