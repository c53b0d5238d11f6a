"""Where snapshots are kept: an object is there whole or not at all, and what was written is what is read."""

import io
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import credentials
from outbox.errors import Refused, Transient
from tests.support.servers import clear_caches
from worker.snapshots import s3, sealed, stores
from worker.snapshots.sealed import CHUNK, Sealer, Unsealer

pytestmark = pytest.mark.usefixtures("settled")


def _sealed(plain: bytes, *, pieces: int = 1) -> bytes:
    out = io.BytesIO()
    sealer = Sealer(out.write, {"resource_id": "r"})
    size = max(1, len(plain) // pieces)
    for start in range(0, len(plain), size):
        sealer.write(plain[start : start + size])
    sealer.finish()
    assert sealer.written == len(out.getvalue())
    return out.getvalue()


def _opened(data: bytes) -> bytes:
    unsealer, found = Unsealer(io.BytesIO(data).read), bytearray()
    while piece := unsealer.read(100_000):
        found += piece
    return bytes(found)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
@pytest.mark.parametrize("pieces", [1, 7])
def test_what_was_sealed_is_opened(size: int, pieces: int) -> None:
    plain = os.urandom(size)
    assert _opened(_sealed(plain, pieces=pieces)) == plain


def test_the_plain_text_is_nowhere_in_it() -> None:
    assert b"customer" not in _sealed(b"customer" * 100)


def test_chunks_that_are_cut_reordered_doubled_or_changed_are_noticed() -> None:
    data = _sealed(os.urandom(3 * CHUNK + 5))
    size = CHUNK + 16
    head = len(data) - 3 * size - 5 - 16
    chunks = [data[head + i * size : head + (i + 1) * size] for i in range(4)]
    for some in (
        chunks[:3],  # cut at a chunk's end
        [*chunks[:3], chunks[3][:-1]],
        [chunks[1], chunks[0], *chunks[2:]],
        [chunks[0], *chunks],
        [*chunks, chunks[3]],
        [*chunks, b"more"],
        [],
    ):
        with pytest.raises(Transient, match="damaged"):
            _opened(data[:head] + b"".join(some))
    assert _opened(data[:head] + b"".join(chunks))


@pytest.mark.parametrize("at", [0, 26, 60, -1])
def test_a_byte_that_changed_is_noticed(at: int) -> None:
    data = bytearray(_sealed(b"x" * 100))
    data[at] ^= 1
    with pytest.raises(Transient):
        _opened(bytes(data))


def test_the_header_of_another_snapshot_opens_nothing() -> None:
    one, other = _sealed(b"x" * 100), _sealed(b"y" * 100)
    head = len(one) - 116
    with pytest.raises(Transient, match="damaged"):
        _opened(other[: len(other) - 116] + one[head:])


def test_a_rotated_key_still_opens_it(settled: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = _sealed(b"x")
    old = settled["DEPROVISIONER_CREDENTIALS_KEY"]
    monkeypatch.setenv("DEPROVISIONER_CREDENTIALS_KEY", f"{credentials.new_key()},{old}")
    clear_caches()
    assert _opened(data) == b"x"
    monkeypatch.setenv("DEPROVISIONER_CREDENTIALS_KEY", credentials.new_key())
    clear_caches()
    with pytest.raises(Transient, match="put back the key"):
        _opened(data)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server that speaks S3."""
    boto3 = pytest.importorskip("boto3", reason="the extra `s3` is not installed")
    server = pytest.importorskip("moto.server", reason="the extra `dev` is not installed")
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    name = f"kept-{uuid.uuid4()}"  # the server keeps what earlier tests have left
    endpoint = f"http://127.0.0.1:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=name)
    yield f"s3://{name}/final?endpoint={endpoint}&region=us-east-1"
    running.stop()


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file:{tmp_path}" if request.param == "folder" else request.getfixturevalue("bucket")


def _read(store: stores.Store, name: str) -> bytes:
    with store.reading(name) as read:
        return b"".join(iter(lambda: read(1 << 20), b""))


def test_an_object_is_there_once_it_is_whole(url: str) -> None:
    location = stores.located(url, "a name.snapshot")
    store, name = stores.at(location)
    assert name == "a name.snapshot"
    data = os.urandom(20 << 20)
    with store.writing(name) as write:
        for start in range(0, len(data), 1 << 20):
            write(data[start : start + (1 << 20)])
        with pytest.raises(Transient):
            _read(store, name)
    assert _read(stores.of(url), name) == data
    store.remove(name)
    store.remove(name)
    with pytest.raises(Transient):
        _read(store, name)


def test_an_object_that_is_empty_can_be_read(url: str) -> None:
    with stores.of(url).writing("n"):
        pass
    assert _read(stores.of(url), "n") == b""


def _fail(write: sealed.Write) -> None:
    write(b"x" * (17 << 20))
    raise ZeroDivisionError


def test_a_writer_that_fails_leaves_nothing(url: str) -> None:
    store = stores.of(url)
    with pytest.raises(ZeroDivisionError), store.writing("n") as write:
        _fail(write)
    with pytest.raises(Transient):
        _read(store, "n")


def test_what_a_writer_that_was_killed_has_left_is_removed_and_a_zombie_s_object_never_appears(url: str) -> None:
    store = stores.of(url)
    zombie = store.writing("n")
    write = zombie.__enter__()
    write(b"x" * (17 << 20))
    store.remove("n")
    with pytest.raises(Transient):
        zombie.__exit__(None, None, None)
    with pytest.raises(Transient):
        _read(store, "n")


def test_a_link_in_the_place_of_a_new_object_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "n.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Transient), stores.of(f"file:{tmp_path}").writing("n"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_only_the_service_s_user_can_read_a_file(tmp_path: Path) -> None:
    with stores.of(f"file:{tmp_path}").writing("n"):
        pass
    assert (tmp_path / "n").stat().st_mode & 0o777 == 0o600


def test_a_bucket_without_its_library_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(Refused, match=r"deprovisioner\[s3\]"):
        stores.of("s3://kept")


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    store = stores.of(bucket.replace("s3://", "s3://other-"))
    with pytest.raises(Transient, match="s3://other-"), store.writing("n"):
        pass


def test_a_longer_upload_has_larger_parts() -> None:
    largest = sum(s3.PART * (1 + place // s3.PARTS_OF_A_SIZE) for place in range(10_000))
    assert largest > 800 << 30
    assert sealed.CHUNK < s3.PART
