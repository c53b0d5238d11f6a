"""What the broker keeps of the control database: on Redis a key, on any other nothing."""

import threading
import uuid
from dataclasses import replace

import pytest
import redis

from deprovisioner.up import servers as embedded
from outbox import doorbell
from outbox.errors import OutOfService, Unavailable
from outbox.memory import Memory
from tests.support.servers import use_environment


@pytest.fixture
def broker(settled: dict[str, str]) -> redis.Redis:
    return redis.Redis.from_url(settled["DEPROVISIONER_BROKER_URL"])


@pytest.fixture
def kept() -> Memory:
    return Memory(uuid.uuid4(), 2, 100, "aa", notes=())


def _key(memory: Memory) -> str:
    return f"deprovisioner:memory:{memory.installation}"


def test_the_broker_keeps_the_later_memory(broker: redis.Redis, kept: Memory) -> None:
    assert doorbell.recall(kept.installation) is None
    assert doorbell.remember(kept) is None
    assert doorbell.remember(replace(kept, event=99, notes=None)) == kept
    assert doorbell.remember(replace(kept, event=98, still=True, notes=None)) == replace(kept, still=True)
    assert doorbell.remember(replace(kept, event=101)) == replace(kept, still=True)
    assert doorbell.remember(replace(kept, epoch=3, event=1, hash="bb")) is None
    assert doorbell.recall(kept.installation) == replace(kept, epoch=3, event=1, hash="bb")
    assert doorbell.recall(uuid.uuid4()) is None
    broker.flushall()
    assert doorbell.recall(kept.installation) is None


def test_workers_at_once_never_lower_what_the_broker_keeps(broker: redis.Redis, kept: Memory) -> None:
    start, lowered = threading.Barrier(8), list[object]()

    def work(worker: int) -> None:
        start.wait()
        for step in range(8):
            event = 200 + step * 8 + worker
            doorbell.remember(replace(kept, event=event, notes=None))
            found = doorbell.recall(kept.installation)
            if found is None or found.event < event:
                lowered.append((event, found))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert lowered == []
    assert doorbell.recall(kept.installation) == replace(kept, event=263)


@pytest.mark.parametrize("garbage", [b"nonsense", b"x" * 900_000, b"\xff\x00", b"{}", None], ids=range(5))
def test_garbage_in_the_broker_is_an_error_that_says_where(
    broker: redis.Redis, kept: Memory, garbage: bytes | None
) -> None:
    if garbage is None:
        broker.rpush(_key(kept), "x")
    else:
        broker.set(_key(kept), garbage)  # the broker takes no text of more than 1 MB
    for verb in (lambda: doorbell.recall(kept.installation), lambda: doorbell.remember(kept)):
        with pytest.raises(OutOfService, match=f"'{_key(kept)}', is no memory: .*remove the key") as caught:
            verb()
        assert len(str(caught.value)) < 1000


def test_another_broker_keeps_nothing(settled: dict[str, str], monkeypatch: pytest.MonkeyPatch, kept: Memory) -> None:
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": "memory://"})
    assert doorbell.remember(kept) is None
    assert doorbell.recall(kept.installation) is None


def test_a_dead_broker_is_no_answer(settled: dict[str, str], monkeypatch: pytest.MonkeyPatch, kept: Memory) -> None:
    url = f"redis://user:hunter2@127.0.0.1:{embedded.free_port()}/0"
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": url})
    for verb in (lambda: doorbell.recall(kept.installation), lambda: doorbell.remember(kept)):
        with pytest.raises(Unavailable, match="the broker does not answer") as caught:
            verb()
        assert "hunter2" not in str(caught.value)


def test_a_broker_that_takes_no_writes_keeps_nothing(broker: redis.Redis, kept: Memory) -> None:
    doorbell.remember(kept)
    broker.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(Unavailable, match=r"(?i)not enough good replicas"):
            doorbell.remember(replace(kept, event=101))
    finally:
        broker.config_set("min-replicas-to-write", 0)
    assert doorbell.recall(kept.installation) == kept
    assert doorbell.remember(replace(kept, event=101)) is None
