"""What each answer means, and what is no answer."""

import json
import socket
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_ssl_devcert

from outbox.errors import BackendError, OutOfService, Refused, Transient, Unavailable
from outbox.rows import Json
from tests.support.provisioners import SECRET, VERBS, App, Served, after, only, says
from tests.worker.backends.webhook.conftest import Serve, provisioned
from worker.backends import Absent, Different, Same
from worker.backends.webhook import Webhook, client
from worker.intake import Intake

ACTIONS: dict[str, type[BackendError] | None] = {
    "200 OK": None,
    "204 No Content": None,
    "301 Moved": Transient,
    "400 Bad Request": Transient,
    "401 Unauthorized": OutOfService,
    "403 Forbidden": OutOfService,
    "404 Not Found": None,
    "410 Gone": None,
    "409 Conflict": Refused,
    "422 Unprocessable": Transient,
    "429 Too Many Requests": OutOfService,
    "500 Internal Server Error": Transient,
    "501 Not Implemented": Transient,
    "502 Bad Gateway": Transient,
    "503 Service Unavailable": OutOfService,
    "504 Gateway Timeout": Transient,
}
QUESTIONS: dict[str, type[BackendError] | None] = ACTIONS | {
    "204 No Content": Transient,
    "301 Moved": Unavailable,
    "409 Conflict": None,
    "502 Bad Gateway": Unavailable,
    "504 Gateway Timeout": Unavailable,
}


@pytest.mark.parametrize("status", ACTIONS)
def test_an_action_s_answer_is_taken_for_what_its_status_says(
    served: Served, backend: Webhook, made: Json, status: str
) -> None:
    served.meddle = only("/deprovision", says(status, server=served.notebooks.server))
    _is(ACTIONS[status], lambda: backend.teardown(made, 1))


@pytest.mark.parametrize("status", QUESTIONS)
def test_a_question_s_answer_is_taken_for_what_its_status_says(
    served: Served, backend: Webhook, made: Json, status: str
) -> None:
    served.meddle = only("/inspect", says(status, server=served.notebooks.server))
    if status in ("404 Not Found", "410 Gone"):
        served.query("DELETE FROM notebooks")
    _is(QUESTIONS[status], lambda: backend.inspect(made))


def _is(error: type[BackendError] | None, act: Callable[[], Any]) -> None:
    if error is None:
        act()
        return
    with pytest.raises(error) as told:
        act()
    assert told.type is error


@pytest.mark.parametrize("status", ["200 OK", "202 Accepted", "404 Not Found", "410 Gone", "409 Conflict"])
def test_an_answer_that_does_not_say_who_answers_does_not_count(serve: Serve, status: str) -> None:
    """A proxy's "not found" would make an orphan of each object that is deleted; and no list contradicts it here."""
    served = serve(verbs=tuple({*VERBS} - {"objects"}))
    backend, made = Webhook(served.dsn()), served.marked()
    for server in (None, "another"):
        served.meddle = only("/inspect", says(status, server=server))
        with pytest.raises((OutOfService, Transient)):
            backend.inspect(made)
        served.meddle = only("/deprovision", says(status, server=server))
        with pytest.raises(Transient, match="outcome of `deprovision` is unknown"):
            backend.teardown(made, 1)


def test_an_object_that_is_not_there_is_absent_and_another_s_is_different(
    served: Served, backend: Webhook, made: Json
) -> None:
    assert isinstance(backend.inspect(made), Same)
    assert isinstance(backend.inspect(made | {"generation": str(uuid.uuid4())}), Different)
    served.query("DELETE FROM notebooks")
    assert isinstance(backend.inspect(made), Absent)


@pytest.mark.parametrize(
    "found", [b"{}", b'{"external": 7}', b'{"external": "OTHER", "generation": null}', b'{"generation": "GEN"}']
)
def test_a_200_that_does_not_show_the_manifest_s_own_object_is_not_the_same(
    served: Served, backend: Webhook, made: Json, found: bytes
) -> None:
    body = found.replace(b"GEN", made["generation"].encode())
    served.meddle = only("/inspect", says("200 OK", body, server=served.notebooks.server))
    seen = backend.inspect(made)
    assert isinstance(seen, Different)
    assert seen.marked == (b"GEN" in found)


def test_a_404_for_what_the_provisioner_has_just_listed_is_no_absence(
    served: Served, backend: Webhook, made: Json
) -> None:
    assert [one.names for one in backend.objects()] == [made]
    served.meddle = only("/inspect", says("404 Not Found", server=served.notebooks.server))
    with pytest.raises(Transient, match="not there, and lists it"):
        backend.inspect(made)
    served.meddle = only("/locate", says("404 Not Found", server=served.notebooks.server))
    with pytest.raises(Transient, match="not there, and lists it"):
        backend.locate(made)


@pytest.mark.parametrize("page", [b"<h1>Welcome</h1>", b'{"status": "ok"}', b'{"protocol": 1, "verbs": ["inspect"]}'])
def test_a_server_that_is_no_provisioner_is_not_asked_for_anything(served: Served, made: Json, page: bytes) -> None:
    served.meddle = says("200 OK", page)
    served.requests.clear()
    backend = Webhook(served.dsn())
    for act in (lambda: backend.inspect(made), lambda: backend.teardown(made, 1), lambda: backend.observable):
        with pytest.raises(OutOfService, match="no provisioner answers at"):
            act()
    assert set(served.asked()) == {"/"}


def test_a_document_that_another_server_repeats_is_none(served: Served, made: Json) -> None:
    body = json.dumps({"protocol": 1, "server": served.notebooks.server, "verbs": ["inspect"]}).encode()
    served.meddle = only("/", says("200 OK", body, server="a cache"))
    with pytest.raises(OutOfService, match="no provisioner answers at"):
        Webhook(served.dsn()).inspect(made)


def test_a_question_s_answer_that_is_cut_off_is_none(served: Served, backend: Webhook, made: Json) -> None:
    served.meddle = only("/inspect", says("200 OK", b'{"external": "a', server=served.notebooks.server))
    with pytest.raises(Transient, match="no JSON object"):
        backend.inspect(made)


def test_another_provisioner_at_the_address_is_the_wrong_server(served: Served, serve: Serve, made: Json) -> None:
    other = serve()
    backend = Webhook(other.dsn())
    seen = backend.inspect(made)
    assert isinstance(seen, Different)
    assert "wrong server" in seen.why
    with pytest.raises(Refused, match="wrong server"):
        backend.teardown(made, 1)
    assert set(other.asked()) == {"/"}
    pinned = Webhook(other.dsn(server=served.notebooks.server))
    for act in (lambda: pinned.plan(uuid.uuid4(), uuid.uuid4()), lambda: pinned.teardown(made, 1)):
        with pytest.raises(OutOfService, match="wrong server"):
            act()


def test_an_address_that_changes_hands_between_two_requests_leaves_the_outcome_unknown(
    served: Served, serve: Serve, made: Json
) -> None:
    other = serve()

    def forward(environ: dict[str, Any], start: Any, _: App) -> Iterable[bytes]:
        return other._honest(environ, start)

    backend = Webhook(served.dsn())
    assert backend.observable, "its document is known now"
    served.meddle = forward
    with pytest.raises(Transient, match="is unknown"):
        backend.teardown(made, 1)
    assert other.effects() == []


def test_a_redirect_is_not_followed(served: Served, serve: Serve, backend: Webhook, made: Json) -> None:
    other = serve()
    served.meddle = only("/deprovision", says("307 Temporary Redirect", Location=f"{other.url}/deprovision"))
    with pytest.raises(Transient):
        backend.teardown(made, 1)
    assert other.requests == []


def test_much_garbage_is_not_read_into_memory(served: Served, backend: Webhook, made: Json) -> None:
    given = []

    def garbage(_: dict[str, Any], start: Any, __: App) -> Iterator[bytes]:
        start("200 OK", [("X-Deprovisioner-Server", served.notebooks.server)])
        for _ in range(1000):
            given.append(65_536)
            yield b"x" * 65_536

    served.meddle = only("/inspect", garbage)
    tracemalloc.start()
    with pytest.raises(Unavailable, match=f"more than {client.LARGEST} bytes"):
        backend.inspect(made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * client.LARGEST, "the provisioner's own are among it"
    assert sum(given) < 32 * client.LARGEST, "it was hung up on"


@pytest.mark.parametrize("how", ["nothing", "headers", "body"])
def test_a_provisioner_that_hangs_or_drips_is_given_up_in_bounded_time(served: Served, made: Json, how: str) -> None:
    """However often a byte comes: the time is that of the whole call."""
    with _dripping(how, served.notebooks.server) as port:
        backend = Webhook(served.dsn(timeout=1))
        document = backend._provisioner.document()
        hanging = Webhook(f"http://127.0.0.1:{port}/?secret={SECRET}&timeout=1")
        hanging._provisioner._document = time.monotonic(), document
        began = time.monotonic()
        if how == "nothing":
            with pytest.raises(Unavailable, match="did not answer within 1 s"):
                hanging.inspect(made)
        with pytest.raises(Transient, match="did not answer within 1 s"):
            hanging.teardown(made, 1)
        assert time.monotonic() - began < 15


@contextmanager
def _dripping(how: str, server: str) -> Iterator[int]:
    """A server that never comes to the end of its answer; its port."""
    begun = {
        "nothing": b"",
        "headers": b"HTTP/1.1 200 OK\r\n",
        "body": f"HTTP/1.1 200 OK\r\nX-Deprovisioner-Server: {server}\r\n\r\n".encode(),
    }[how]
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.sendall(begun)
            for _ in range(200):
                if ended.wait(0.1):
                    return
                try:
                    connection.sendall({"nothing": b"", "headers": b"X-More: 1\r\n", "body": b" "}[how])
                except OSError:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_provisioner_that_says_when_to_come_back_is_left_alone_until_then(
    served: Served, backend: Webhook, made: Json, status: str
) -> None:
    served.meddle = only("/deprovision", says(status, server=served.notebooks.server, Retry_After="3600"), times=1)
    with pytest.raises(OutOfService, match="does not work now"):
        backend.teardown(made, 1)
    so_far = len(served.requests)
    for act in (lambda: backend.inspect(made), lambda: backend.teardown(made, 1)):
        with pytest.raises(OutOfService, match=r"another 3\d\d\d s \(Retry-After\)"):
            act()
    assert len(served.requests) == so_far
    assert served.effects() == ["provision"]


def test_what_the_provisioner_repeats_of_credentials_is_in_no_error(served: Served, backend: Webhook) -> None:
    def repeats(environ: dict[str, Any], start: Any, _: App) -> Iterable[bytes]:
        said = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start("500 Oops", [("X-Deprovisioner-Server", served.notebooks.server)])
        return [b'{"error": ' + said[said.index(b'"password": ') + 12 : said.rindex(b"}}")] + b"}"]

    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    served.meddle = only("/provision", repeats)
    with pytest.raises(Transient) as told:
        backend.provision(plan.manifest, plan.credentials)
    assert str(told.value).endswith("HTTP 500: (secret)")


def test_the_provisioner_s_words_are_bounded_and_on_one_line(served: Served, backend: Webhook, made: Json) -> None:
    words = b'{"error": "first\\nsecond \\u001b[2J' + b"x" * 100_000 + b'"}'
    served.meddle = only("/deprovision", says("409 Conflict", words, server=served.notebooks.server))
    with pytest.raises(Refused) as told:
        Intake(backend).teardown(made, 1)
    assert ": first second \\x1b[2Jxxx" in str(told.value)
    assert len(str(told.value)) < 500


def test_a_500_after_the_work_leaves_the_outcome_unknown_until_the_next_look(
    served: Served, backend: Webhook, made: Json
) -> None:
    served.meddle = only("/deprovision", after(lambda: None, says("500 Oops", server=served.notebooks.server)))
    with pytest.raises(Transient, match="outcome of `deprovision` is unknown"):
        backend.teardown(made, 1)
    assert isinstance(backend.inspect(made), Absent)
    assert served.effects() == ["provision", "deprovision"]


def test_a_certificate_is_checked_with_its_name(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_ssl_devcert(str(tmp_path / "tls"), host="localhost")
    served = serve(tls=(certificate, key))
    right = served.dsn(ca=certificate).replace("http://127.0.0.1", "https://localhost")
    made = provisioned(Webhook(right))
    for wrong in (right.replace(f"&ca={certificate}", ""), right.replace("localhost", "127.0.0.1")):
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            Webhook(wrong).teardown(made, 1)
    assert served.effects() == ["provision"]


def test_the_environment_s_proxies_are_not_used(served: Served, monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    proxy = serve()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    provisioned(Webhook(served.dsn()))
    assert proxy.requests == []


def test_a_secret_is_changed_without_a_gap(served: Served) -> None:
    """The dsn has both secrets meanwhile, and the provisioner one of them."""
    new = "whsec_" + "QUJD" * 10
    for both in (f"secret={new}&secret={SECRET}", f"secret={SECRET}&secret={new}"):
        assert Webhook(f"{served.url}/?{both}").observable
    with pytest.raises(OutOfService, match="does not take our signature"):
        assert Webhook(f"{served.url}/?secret={new}").observable


def test_credentials_are_the_provisioner_s_where_it_plans_them(served: Served, backend: Webhook) -> None:
    server = served.notebooks.server
    document = {"protocol": 1, "server": server, "verbs": ["plan", "provision"], "status_urls": False}
    planned = b'{"credentials": {"url": "https://books.example.com", "password": "theirs"}}'

    def plans(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        body = {"/": json.dumps(document).encode(), "/plan": planned}.get(environ["PATH_INFO"])
        return honest(environ, start) if body is None else says("200 OK", body, server=server)(environ, start, honest)

    served.meddle = plans
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    assert plan.credentials == {"url": "https://books.example.com", "password": "theirs"}
    backend.provision(plan.manifest, plan.credentials)
    assert served.notebooks.opened(plan.manifest["external"], "theirs") == ""
    planned = b'{"credentials": "none"}'
    with pytest.raises(Transient, match="plans no credentials"):
        backend.plan(uuid.uuid4(), uuid.uuid4())
