"""What a backend keeps of the control database: the same tests for each kind that keeps it, documented accounts."""

import datetime as dt
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from outbox.errors import OutOfService
from outbox.memory import Memory, Note, nothing
from tests.support import accounts
from tests.support.s3_server import SERVICE_BUCKET, S3Server
from tests.support.servers import Servers
from tests.support.witness import PgServer, RedisServer
from worker.backends import Backend
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis
from worker.backends.s3 import S3

AT = dt.datetime(2026, 11, 30, 8, 0, tzinfo=dt.UTC)
TABLE = "deprovisioner_memory.memories"
MANY = 8  # workers at once


@dataclass
class Place:
    """A kind under test; `read` and `write` are an administrator's, and know the record as the kind keeps it."""

    backend: Backend
    # What the server has in words: None where there is nothing.
    read: Callable[[uuid.UUID], str | None]
    # Something else in its place.
    spoil: Callable[[uuid.UUID, str], None]


def _in_postgres(server: PgServer) -> Place:
    def query(statement: str, *values: object) -> list[tuple]:
        return server.query(statement, *values, database=accounts.NAME)

    def read(installation: uuid.UUID) -> str | None:
        if query("SELECT to_regclass(%s)", TABLE) == [(None,)]:
            return None
        found = query(f"SELECT (m.*)::text FROM {TABLE} AS m WHERE installation = %s", str(installation))
        return found[0][0] if found else None

    def spoil(installation: uuid.UUID, text: str) -> None:
        query(f"UPDATE {TABLE} SET notes = %s WHERE installation = %s", text, str(installation))

    return Place(Postgres(server.service_dsn), read, spoil)


def _in_redis(server: RedisServer) -> Place:
    def read(installation: uuid.UUID) -> str | None:
        key, user = server.client.get(_name(installation)), server.client.acl_getuser(_name(installation))
        return None if key is None and user is None else f"{key} {user}"

    return Place(Redis(server.service_dsn), read, lambda one, text: server.client.set(_name(one), text))


def _name(installation: uuid.UUID) -> str:
    return f"deprovisioner:memory:{installation}"


def _in_s3(server: S3Server) -> Place:
    client = server.client("root")

    def read(installation: uuid.UUID) -> str | None:
        where = {"Bucket": SERVICE_BUCKET, "Prefix": f"deprovisioner/memory/{installation}"}
        found = client.list_objects_v2(**where).get("Contents", [])
        return found[0]["ETag"] if found else None

    def spoil(installation: uuid.UUID, text: str) -> None:
        client.put_object(Bucket=SERVICE_BUCKET, Key=f"deprovisioner/memory/{installation}", Body=text.encode())

    return Place(S3(server.dsn()), read, spoil)


@pytest.fixture(params=["postgres 18", "postgres 15", "valkey", "redis 7", "s3"])
def place(request: pytest.FixtureRequest, servers: Servers) -> Place:
    match request.param:
        case "postgres 18":
            return _in_postgres(servers.pg)
        case "postgres 15":
            return _in_postgres(request.getfixturevalue("postgres15"))
        case "valkey":
            return _in_redis(servers.redis)
        case "s3":
            return _in_s3(request.getfixturevalue("s3_server"))
        case _:
            return _in_redis(request.getfixturevalue("redis7"))


@pytest.fixture
def kept() -> Memory:
    return Memory(uuid.uuid4(), 2, 100, "aa", notes=())


def _note(event: int, **detail: object) -> Note:
    return Note(event, "0123456789abcdef", AT, "hold_engaged", uuid.UUID(int=event), detail)


def test_a_memory_is_kept_and_read_back_by_another_process(place: Place, kept: Memory) -> None:
    assert place.backend.recall(kept.installation) is None
    assert place.read(kept.installation) is None, "a recall writes nothing"
    full = replace(kept, notes=(_note(98, why="disk"), replace(_note(99), resource=None)))
    assert place.backend.remember(full) is None
    assert place.backend.recall(kept.installation) == full
    assert place.read(kept.installation) is not None


def test_a_later_memory_is_returned_and_stays(place: Place, kept: Memory) -> None:
    place.backend.remember(kept)
    before = place.read(kept.installation)
    for late in (replace(kept, event=99, hash="99"), replace(kept, epoch=1, event=500), replace(kept, hash="bb")):
        assert place.backend.remember(replace(late, notes=None)) == kept
        assert place.read(kept.installation) == before
    for next_ in (replace(kept, event=101, hash="cc"), replace(kept, epoch=3, event=5, hash="dd")):
        assert place.backend.remember(replace(next_, notes=None)) is None
        assert place.backend.recall(kept.installation) == next_


def test_still_stays_within_an_epoch_and_only_a_later_epoch_clears_it(place: Place, kept: Memory) -> None:
    place.backend.remember(kept)
    rewound = replace(kept, event=40, hash="40", still=True, notes=None)
    still = replace(kept, still=True)
    assert place.backend.remember(rewound) == still, "what is there keeps its event"
    for one in (replace(kept, event=500, hash="ee"), replace(kept, epoch=1, event=900)):
        assert place.backend.remember(replace(one, notes=None)) == still
        assert place.backend.recall(kept.installation) == still
    assert place.backend.remember(replace(still, event=500, hash="ee", notes=None)) is None
    recovered = replace(kept, epoch=3, event=41, hash="41")
    assert place.backend.remember(recovered) is None
    assert place.backend.recall(kept.installation) == recovered


def test_notes_stay_until_newer_ones_come(place: Place, kept: Memory) -> None:
    notes = (_note(95), _note(99))
    place.backend.remember(replace(kept, notes=notes))
    place.backend.remember(replace(kept, event=200, hash="bb", notes=None))
    found = place.backend.recall(kept.installation)
    assert found == replace(kept, event=200, hash="bb", notes=notes)
    newer = (_note(150),)
    assert place.backend.remember(replace(kept, event=150, hash="cc", notes=newer)) == replace(found, notes=newer)
    assert place.backend.recall(kept.installation) == replace(found, notes=newer)


@pytest.mark.parametrize("made", [False, True], ids=["the first", "later ones"])
def test_workers_at_once_never_lower_it(place: Place, kept: Memory, made: bool) -> None:
    """Each worker offers its events upwards, all at once; what is kept never sinks below what any was told."""
    if made:
        place.backend.remember(replace(kept, event=1))
    start, told = threading.Barrier(MANY), list[str]()

    def work(worker: int) -> None:
        start.wait()
        highest = 0
        for step in range(4):
            event = 10 + step * MANY + worker
            there = place.backend.remember(replace(kept, event=event, hash=f"{event:x}", notes=None))
            now = event if there is None else there.event
            if now < max(highest, event):
                told.append(f"{worker} was told {now}, after {highest}, {event}")
            highest = now
            seen = place.backend.recall(kept.installation)
            if seen is None or seen.event < highest:
                told.append(f"{worker} saw {seen} after {highest}")

    _at_once(work)
    assert told == []
    last = 10 + 4 * MANY - 1
    assert place.backend.recall(kept.installation) == replace(kept, event=last, hash=f"{last:x}")


def test_still_is_not_lost_among_workers_that_write_at_once(place: Place, kept: Memory) -> None:
    place.backend.remember(kept)
    start, missed = threading.Barrier(MANY), list[int]()
    said = threading.Event()

    def work(worker: int) -> None:
        start.wait()
        for step in range(5):
            event = 200 + step * MANY + worker
            if worker == step == 0:
                place.backend.remember(replace(kept, event=10, still=True, notes=None))
                said.set()
                return
            before = said.is_set()
            there = place.backend.remember(replace(kept, event=event, notes=None))
            if before and (there is None or not there.still):
                missed.append(event)

    _at_once(work)
    found = place.backend.recall(kept.installation)
    assert found is not None
    assert (found.still, missed) == (True, [])


def _at_once(work: Callable[[int], None]) -> None:
    raised: list[Exception] = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except Exception as error:  # noqa: BLE001 - whatever a thread raises, the test tells
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(MANY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert raised == []


def test_two_installations_do_not_disturb_each_other(place: Place, kept: Memory) -> None:
    other = replace(kept, installation=uuid.uuid4(), epoch=9, event=9, hash="99", notes=(_note(9),))
    place.backend.remember(kept)
    place.backend.remember(replace(other, still=True))
    assert place.backend.remember(replace(kept, event=101)) is None
    assert place.backend.recall(other.installation) == replace(other, still=True)
    assert place.backend.recall(kept.installation) == replace(kept, event=101)
    found = place.backend.installations()
    assert {kept.installation, other.installation} <= set(found)
    assert len(found) == len(set(found))


def test_a_place_that_has_less_than_was_kept_is_left_as_it_is(place: Place, kept: Memory) -> None:
    """It went back in time: a write before a destruction must not hide it from the next comparison."""
    offered = replace(kept, event=300, hash="cc", notes=None)
    assert place.backend.remember(offered, (2, 200)) == nothing(kept.installation)
    assert place.read(kept.installation) is None
    place.backend.remember(kept)
    before = place.read(kept.installation)
    assert place.backend.remember(offered, (2, 200)) == kept
    assert place.backend.remember(offered, (3, 1)) == kept
    assert place.read(kept.installation) == before
    assert place.backend.remember(offered, (2, 100)) is None
    assert place.backend.remember(replace(offered, event=10, still=True), (2, 999)) is not None
    found = place.backend.recall(kept.installation)
    assert found is not None
    assert found.still, "whatever a place has lost, it is to keep still"


@pytest.mark.parametrize(
    "garbage", ["", "nonsense", "{}", "[7]", "[" * 100_000, "x" * 10_000_000, '"\\u0000"'], ids=range(7)
)
def test_garbage_is_an_error_that_says_where_it_is_and_what_to_do(place: Place, kept: Memory, garbage: str) -> None:
    place.backend.remember(kept)
    place.spoil(kept.installation, garbage)
    for verb in (
        lambda: place.backend.recall(kept.installation),
        lambda: place.backend.remember(replace(kept, event=50, notes=None)),
    ):
        with pytest.raises(OutOfService, match="is no memory: ") as caught:
            verb()
        said = str(caught.value)
        assert str(kept.installation) in said
        assert "find out who wrote it, then remove it: " in said
        assert len(said) < 1000
    assert kept.installation in place.backend.installations(), "it is not nothing"


def test_the_largest_memory_is_read_back(place: Place, kept: Memory) -> None:
    largest = replace(kept, notes=tuple(_note(n, why="\N{SNOWMAN}" * 100) for n in range(1000)))
    assert place.backend.remember(largest) is None
    assert json.loads(json.dumps(largest.as_json())) == place.backend.recall(kept.installation).as_json()
