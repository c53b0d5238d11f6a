"""What each refusal of an endpoint means, told by its code; docs/backends.md has the table."""

import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from outbox.errors import BackendError, OutOfService, Refused, Transient, Unavailable
from outbox.rows import Json
from tests.support import s3_server as servers
from tests.support.s3_server import S3Server
from worker.backends.s3 import S3, session
from worker.backends.s3.session import MEANS, RIGHTS

DOCUMENT = (Path(__file__).parents[4] / "docs" / "backends.md").read_text()
MANIFEST: Json = {"bucket": f"bkt-{uuid.uuid4()}", "owner": None, "generation": str(uuid.uuid4()), "server": "s"}


@contextmanager
def _answering(status: int, body: str) -> Iterator[S3]:
    """An endpoint that gives one answer to all requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield S3(f"s3://key:hush-hush@127.0.0.1:{server.server_port}/own?region=r&tls=false")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (503, "SlowDown", OutOfService),
        (429, "", OutOfService),
        (503, "", OutOfService),
        (500, "InternalError", Transient),
        (403, "InvalidAccessKeyId", Unavailable),
        (403, "RequestTimeTooSkewed", Unavailable),
        (400, "SomethingElse", Transient),
    ],
)
def test_a_refusal_is_told_by_its_code(
    status: int, code: str, error: type[BackendError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "TRIES", 1)
    body = f"<Error><Code>{code}</Code><Message>words\x01 of\nit {'x' * 5000}</Message></Error>".replace("\x01", "")
    with _answering(status, body if code else "") as backend, pytest.raises(error) as refused:
        backend.inspect(MANIFEST)
    assert type(refused.value) is error
    assert "hush-hush" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, "<html>nothing here</html>"),
        (404, "<Error><Code>NoSuchBucket</Code></Error>"),
        (200, "<html>welcome</html>"),
    ],
    ids=["proxy", "another endpoint", "portal"],
)
def test_a_word_of_absence_from_anywhere_else_does_not_count(
    status: int, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "TRIES", 1)
    with _answering(status, body) as backend:
        for act in (backend.inspect, lambda manifest: backend.teardown(manifest, 1)):
            with pytest.raises((Transient, OutOfService)):
                act(MANIFEST)


def test_the_document_has_the_table_of_codes() -> None:
    block = DOCUMENT.partition("<!-- codes: s3 -->")[2].partition("<!-- /codes -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", block, re.MULTILINE)
    shown = {code: name for name, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert shown == {code: error.__name__ for code, error in MEANS.items()}


def test_the_documented_policy_has_every_right_and_no_other() -> None:
    allowed = {action for one in servers.documented() for action in one["Action"]}
    assert allowed == {right for rights in RIGHTS.values() for right in rights}


@pytest.mark.parametrize("verb", ["inspect", "quarantine", "objects"])
def test_a_missing_right_is_refused_with_its_name(s3_server: S3Server, made: Json, verb: str) -> None:
    right = {"inspect": "s3:GetBucketTagging", "quarantine": "s3:GetObjectRetention", "objects": "s3:ListAllMyBuckets"}
    name = f"weak-{uuid.uuid4()}"
    s3_server.make_user(name, *servers.documented(lacking=right[verb]))
    weak = S3(s3_server.dsn(name))
    with pytest.raises(Refused, match=right[verb]):
        list(weak.objects()) if verb == "objects" else getattr(weak, verb)(made)
