"""Whatever a backend returns or raises, of any kind: what is stored and logged of it is short and printable."""

import datetime as dt
import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import structlog
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from outbox import foreign, logs, observations
from outbox.errors import BackendError, DeprovisionerError, OutOfService, Refused, Transient, Unavailable
from outbox.memory import BYTES, Memory, Note
from tests.support.factories import a_claim, a_job, claims, events_of, job
from tests.support.servers import Servers
from tests.support.shelf import Shelf, fail
from worker import checks, observer
from worker.backends import Absent, Different, Finding, MarkedObject, Plan, Same
from worker.backends.postgres import Postgres
from worker.intake import Intake
from worker.run import Run

LONG = "x" * 6_000_000
NASTY = "a\0b\ud800c\x1b[2J\u202e\r\nd"
_ROWS = ("outbox", "events", "resources", "observations")


def stored(db: Connection) -> str:
    """Everything in the control database that a worker writes, as text."""
    rows = (db.execute(text(f"SELECT string_agg(t::text, '') FROM {table} AS t")).scalar() for table in _ROWS)
    return "".join(row or "" for row in rows)


def _deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"d": made}
    return made


HOSTILE: dict[str, Any] = {
    "a long text": {"comment": LONG},
    "NUL and surrogates": {"comment": NASTY, NASTY: 1},
    "a long key": {LONG: 1},
    "many keys": {f"k{n}": "v" * 100 for n in range(100_000)},
    "a long list": {"keys": ["k" * 400] * 1_000_000},
    "a deep dict": _deep(100_000),
    "no JSON": {"bytes": b"\0\xff", "set": {1}, "object": object(), "float": float("nan"), "number": 1 << 100_000},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_backend_saw_and_did_is_bounded_and_storable(db: Connection, what: str) -> None:
    seen = HOSTILE[what]

    class Told(Shelf):
        def teardown(self, manifest: Any, fence: int) -> Any:
            return seen

    ends = {
        "completed": [Same(seen), Absent(seen)],
        "retried": [Same(seen), Same(seen)],
        "stuck": [Different(seen, LONG + NASTY)],
    }
    for end, answers in ends.items():
        claim = a_claim(db)
        Run(claim, Told(sees=list(answers)), worker="w1")()
        assert events_of(db, claim.id)[-1] == end
    assert len(stored(db)) < 64_000
    asked = observations.ask(db, a_job(db, state="stuck"), actor="op")
    (look,) = observations.take(db, {"pg-main": 9}, slots=9)
    observer.observe(look, Shelf(sees=[Different(seen, LONG)]), worker="w")
    recorded = observations.find(db, asked.id)
    assert recorded is not None
    assert len(json.dumps(recorded.seen)) < 5_000


@pytest.mark.parametrize("kind", [OutOfService, Unavailable, Transient, Refused, ValueError, DeprovisionerError])
def test_an_error_s_words_are_bounded_and_storable_ten_times_over(db: Connection, kind: type[Exception]) -> None:
    id = a_job(db)
    for _ in range(10):
        db.execute(text("DELETE FROM breakers"))
        db.execute(text("UPDATE outbox SET available_at = now()"))
        with capture_logs():
            for claim in claims(db):
                Run(claim, Shelf(does=fail(kind(NASTY + LONG))), worker="w1")()
    told = job(db, id).last_error
    assert told.isprintable()
    assert len(told) < 1_100
    assert kind is ValueError or told.startswith("a\\x00b\\ud800c\\x1b[2J\\u202e  d")
    assert len(stored(db)) < 64_000


def test_errors_keep_their_meaning(db: Connection) -> None:
    class Own(Unavailable):
        def __str__(self) -> str:
            return LONG

    wanted = {Own(): Unavailable, DeprovisionerError(LONG): BackendError, BackendError(LONG): BackendError}
    for raised, kind in ({error("x"): error for error in (OutOfService, Transient, Refused)} | wanted).items():
        with pytest.raises(BackendError) as caught:
            Intake(Shelf(sees=[raised])).inspect({})
        assert type(caught.value) is kind
        assert len(str(caught.value)) < 1_100


def test_a_manifest_is_never_cut_but_refused(db: Connection) -> None:
    for wrong in ({"name": LONG}, {"name": "a\0b"}, {"name": "\ud800"}, {"name": object()}, {"n": float("nan")}):

        class Wrong(Shelf):
            def plan(self, resource_id: Any, generation: Any, made: Any = wrong) -> Plan:
                return Plan(made, {})

            def provision(self, manifest: Any, credentials: Any, made: Any = wrong) -> Any:
                return made

            def adopt(self, manifest: Any, generation: Any, made: Any = wrong) -> Any:
                return made

        backend = Intake(Wrong(sees=[Same({"completes": wrong})]))
        for act in (
            lambda backend=backend: backend.plan(uuid.uuid4(), uuid.uuid4()),
            lambda backend=backend: backend.provision({}, {}),
            lambda backend=backend: backend.adopt({}, uuid.uuid4()),
            lambda backend=backend: backend.inspect({}),
        ):
            with pytest.raises(Refused, match="manifest cannot be stored") as caught:
                act()
            assert len(str(caught.value)) < 1_200
    completes = {"role_oid": 7, "note": "n" * 5_000}
    seen = Intake(Shelf(sees=[Same({"completes": completes, "comment": LONG})])).inspect({})
    assert seen.seen["completes"] == completes


def test_an_inspection_that_would_change_a_manifest_is_refused(db: Connection) -> None:
    has = {"oid": 7, "role_oid": None}
    for completes in ({"oid": 7}, {"role_oid": 9}, {"note": "new"}):
        assert Intake(Shelf(sees=[Same({"completes": completes})])).inspect(has) == Same({"completes": completes})
    for completes in ({"oid": 8}, {"role_oid": 9, "oid": None}):
        with pytest.raises(Refused, match="would change oid of the manifest; it may only add"):
            Intake(Shelf(sees=[Same({"completes": completes})])).inspect(has)


def test_what_a_check_finds_is_bounded(db: Connection) -> None:
    class Checking(Shelf):
        def check(self) -> list[Finding]:
            return [Finding("code", LONG, NASTY + LONG)] * 1_000

    found = checks.check("b", Checking()).findings
    assert len(found) == 100
    assert all((one.what + one.mend).isprintable() and len(one.what + one.mend) < 6_000 for one in found)


def test_what_is_told_of_an_object_is_bounded_and_its_manifest_is_whole_or_none(db: Connection) -> None:
    whole = {"name": "n" * 5_000, "prefix": "mañana\x1b[2J"}
    wrong = ({"name": LONG}, {"name": "a\0b"}, {"name": "\ud800"}, {"name": object()})

    class Telling(Shelf):
        def objects(self) -> Iterator[MarkedObject]:
            for names in (whole, *wrong):
                yield MarkedObject(NASTY + LONG, names, (NASTY + LONG,) * 1_000, why=LONG)
            raise Unavailable(LONG)

    told = Intake(Telling()).objects()
    found = [next(told) for _ in range(5)]
    assert found[0].names == whole
    assert not found[0].contradictory
    assert [(one.names, one.contradictory) for one in found[1:]] == [({}, True)] * 4
    assert all("manifest cannot be stored" in one.why for one in found[1:])
    for one in found:
        words = (one.generation, one.why, *one.parts)
        assert all(word.isprintable() for word in words)
        assert sum(map(len, words)) < 7_000
    with pytest.raises(Unavailable) as caught:
        next(told)
    assert len(str(caught.value)) < 1_100, "an end is the end only without an error"


def test_a_kind_that_does_not_tell_its_objects_has_not_told_that_there_are_none() -> None:
    with pytest.raises(Refused, match="does not tell"):
        list(Intake(Shelf()).objects())


def test_a_comment_of_a_megabyte_is_bounded(db: Connection, servers: Servers) -> None:
    backend = Postgres(servers.pg.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    servers.pg.query(f'COMMENT ON DATABASE "{made["database"]}" IS %s', "c" * 1_000_000)
    claim = replace(a_claim(db), manifest=made)
    Run(claim, backend, worker="w1")()
    assert job(db, claim.id).state == "stuck"
    assert len(stored(db)) < 16_000
    servers.pg.query(f'COMMENT ON DATABASE "{made["database"]}" IS %s', f"deprovisioner gen={made['generation']}")
    backend.teardown(made, 1)


def test_a_log_line_is_bounded_and_printable_whatever_an_error_says(monkeypatch: pytest.MonkeyPatch) -> None:
    into = io.StringIO()
    monkeypatch.setattr("sys.stderr", into)
    before = structlog.get_config()
    try:
        logs.configure()
        try:
            raise ValueError(NASTY + LONG)
        except ValueError:
            structlog.get_logger().error("failed", error=LONG, exc_info=True)
    finally:
        structlog.configure(**before)
    line = json.loads(into.getvalue())
    assert len(into.getvalue()) < 100_000
    assert "Traceback" in line["exception"]
    assert not {"\0", "\ud800", "\x1b", "\u202e"} & set(line["exception"])


@pytest.mark.parametrize("words", ["", "plain", "mañana 日本 – ok", "'quoted' \\ back"])
def test_ordinary_words_stay_as_they_are(words: str) -> None:
    assert foreign.line(words) == words
    assert foreign.block(f"{words}\n\t{words}", 100) == f"{words}\n\t{words}"
    assert foreign.evidence({"n": 1, "t": [words, None, True, 1.5]}) == {"n": 1, "t": [words, None, True, 1.5]}


def test_of_many_values_the_first_are_shown() -> None:
    seen = foreign.evidence({f"k{n}": {f"k{n}": n for n in range(60)} for n in range(60)})
    assert seen.get("k0") == {f"k{n}": n for n in range(60)}
    assert seen.get("k59") == "…"
    assert len(json.dumps(seen)) <= foreign.EVIDENCE


KEPT = Memory(uuid.uuid4(), 1, 100, "aa", notes=())
NO_MEMORY: dict[str, Any] = {
    "a text": LONG,
    "a dict": KEPT.as_json(),
    "another installation's": replace(KEPT, installation=uuid.uuid4()),
    "a text for a number": replace(KEPT, event="100"),  # type: ignore[arg-type]
    "a long hash": replace(KEPT, hash=LONG),
    "nasty words": replace(KEPT, hash=NASTY),
    "no notes": replace(KEPT, notes=LONG),  # type: ignore[arg-type]
    "deep notes": replace(KEPT, notes=(_deep(100_000),)),  # type: ignore[arg-type]
    "a text that lags": replace(KEPT, lagging=LONG),  # type: ignore[arg-type]
}


class Remembers(Shelf):
    """A kind of a third party whose server answers with whatever it is given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def remember(self, memory: Memory, least: Any) -> Any:
        return self.answer

    def recall(self, installation: uuid.UUID) -> Any:
        return self.answer

    def installations(self) -> Any:
        return self.answer


@pytest.mark.parametrize("what", NO_MEMORY)
def test_what_is_no_memory_never_counts_as_nothing_remembered(what: str) -> None:
    intake = Intake(Remembers(NO_MEMORY[what]))
    for verb in (lambda: intake.recall(KEPT.installation), lambda: intake.remember(KEPT)):
        with pytest.raises(OutOfService, match="is no memory") as caught:
            verb()
        assert len(str(caught.value)) < 2000
        assert str(caught.value).isprintable()


def test_a_memory_of_a_third_party_comes_through_and_is_bounded() -> None:
    note = Note(99, "aa", dt.datetime(2026, 11, 30, tzinfo=dt.UTC), "hold_engaged", None, {"why": LONG})
    for there in (KEPT, replace(KEPT, still=True, lagging=7)):
        assert Intake(Remembers(there)).recall(KEPT.installation) == there
        assert Intake(Remembers(there)).remember(KEPT) == there
    found = Intake(Remembers(replace(KEPT, notes=(note,) * 5000))).recall(KEPT.installation)
    assert found is not None
    assert len(json.dumps(found.as_json())) <= BYTES
    assert Intake(Remembers(None)).recall(KEPT.installation) is None
    assert Intake(Remembers(None)).remember(KEPT) is None
    assert Intake(Remembers([KEPT.installation])).installations() == [KEPT.installation]
    with pytest.raises(OutOfService, match="no UUIDs"):
        Intake(Remembers([LONG] * 5)).installations()


def test_a_kind_without_a_memory_keeps_nothing_and_its_check_says_so() -> None:
    intake = Intake(Shelf())
    assert not intake.keeps_memory
    assert intake.remember(KEPT) is None
    assert intake.recall(KEPT.installation) is None
    assert intake.installations() == []
    assert [one.code for one in intake.check()] == ["no_memory"]
    assert Intake(Remembers(None)).keeps_memory
    assert Intake(Remembers(None)).check() == []


def test_whether_a_backend_can_be_observed_is_asked_once_an_attempt() -> None:
    """A kind may have to ask its server, which may be away, or say another thing a moment later."""

    class Asking(Shelf):
        answers: ClassVar[list[Any]] = [Unavailable("x\n" * 10_000), False, True]

        @property
        def observable(self) -> bool:
            if isinstance(answer := self.answers.pop(0), Exception):
                raise answer
            return bool(answer)

        @observable.setter
        def observable(self, _: bool) -> None:
            """A Shelf sets it."""

    asked = Intake(Asking())
    with pytest.raises(Unavailable) as away:
        assert asked.observable
    assert len(str(away.value)) < 2_000
    assert [asked.observable, asked.observable] == [False, False]
