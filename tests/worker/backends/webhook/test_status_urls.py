"""Work that goes on after its answer: 202, and a status URL that is asked until it is done."""

import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from outbox.errors import Refused, Transient
from tests.support.provisioners import ACTIONS, App, Served, only, says
from tests.worker.backends.webhook.conftest import Serve, provisioned
from worker.backends import Absent, Same
from worker.backends.caller import calling
from worker.backends.fleet import Progress, hearing
from worker.backends.webhook import Webhook


@pytest.fixture
def slow(serve: Serve) -> Served:
    return serve(seconds=0.15)


def test_every_action_is_waited_for(slow: Served) -> None:
    backend = Webhook(slow.dsn())
    made = provisioned(backend)
    backend.quarantine(made)
    backend.release(made)
    assert isinstance(backend.inspect(made), Same)
    assert backend.teardown(made, 1) == {"status": 200, "did": {"notebooks": 1}}
    assert isinstance(backend.inspect(made), Absent)
    assert slow.effects() == ["provision", "quarantine", "release", "deprovision"]


def test_a_repeated_request_gives_the_same_status_url_and_one_effect(slow: Served) -> None:
    made = slow.marked()

    def attempt(fence: int) -> None:
        with calling(7, fence):
            Webhook(slow.dsn()).teardown(made, fence)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(attempt, (1, 2)))
    asked = {path for path in slow.asked() if path.startswith("/status/")}
    assert len(asked) == 1
    assert slow.asked()["/deprovision"] == 2
    assert slow.effects() == ["deprovision"]


def test_a_refusal_that_comes_later_is_a_refusal(slow: Served) -> None:
    backend = Webhook(slow.dsn())
    made = slow.marked()
    with pytest.raises(Refused, match="is of generation"):
        backend.teardown(made | {"generation": str(uuid.uuid4())}, 1)
    assert slow.effects() == []


def test_work_that_is_not_done_in_time_is_asked_for_again_by_the_next_attempt(serve: Serve) -> None:
    slow = serve(seconds=1.2)
    made = slow.marked()
    with pytest.raises(Transient, match="still at work after 1 s"):
        Webhook(slow.dsn(wait=1)).teardown(made, 1)
    assert Webhook(slow.dsn()).teardown(made, 2)["status"] == 200
    assert slow.effects() == ["deprovision"]


def test_a_status_url_that_fails_for_a_while_is_asked_again(slow: Served) -> None:
    backend = Webhook(slow.dsn())
    made = slow.marked()
    left = iter([says("502 Bad Gateway"), says("503 Service Unavailable", server=slow.notebooks.server)])

    def failing(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/status/") and (fault := next(left, None)) is not None:
            return fault(environ, start, honest)
        return honest(environ, start)

    slow.meddle = failing
    assert backend.teardown(made, 1)["status"] == 200
    assert next(left, None) is None


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
def test_a_status_url_that_has_forgotten_the_work_says_nothing_of_the_object(slow: Served, status: str) -> None:
    backend = Webhook(slow.dsn())
    made = slow.marked()

    def meddle(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/status/"):
            return says(status, server=slow.notebooks.server)(environ, start, honest)
        return honest(environ, start)

    slow.meddle = meddle
    with pytest.raises(Transient, match="forgotten the work"):
        backend.teardown(made, 1)


@pytest.mark.parametrize(
    "where",
    ["http://127.0.0.1:{port}/secret", "//127.0.0.1:{port}/x", "file:///etc/passwd", ""],
    ids=["port", "no scheme", "file", "none"],
)
@pytest.mark.parametrize("by", ["header", "body"])
def test_a_status_url_of_another_origin_is_never_asked(
    served: Served, serve: Serve, backend: Webhook, made: dict[str, Any], where: str, by: str
) -> None:
    other = serve()
    url, server = where.format(port=other.port), served.notebooks.server
    body = b"{}" if by == "header" else b'{"status_url": "%s"}' % url.encode()
    headers = {"Location": url} if by == "header" and url else {}
    served.meddle = only("/deprovision", says("202 Accepted", body, server=server, **headers))
    with pytest.raises(Transient, match="of another origin" if url else "without a status URL"):
        backend.teardown(made, 1)
    assert other.requests == []


def test_the_provisioner_s_pace_is_kept_and_its_progress_is_told(serve: Serve) -> None:
    """One look for each `Retry-After`, and not four a second."""
    slow = serve(seconds=0.1)
    backend, done, told = Webhook(slow.dsn()), threading.Event(), list[Progress]()

    def status(_: dict[str, Any], start: Any, __: App) -> Iterable[bytes]:
        looks = sum(count for path, count in slow.asked().items() if path.startswith("/status/"))
        headers = [("X-Deprovisioner-Server", slow.notebooks.server), ("Retry-After", "1")]
        if looks == 2:
            done.set()
        start("200 OK" if done.is_set() else "202 Accepted", headers)
        return [b'{"done": 3, "total": 7, "what": "tables"}']

    def meddle(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        return (status if environ["PATH_INFO"].startswith("/status/") else _honest)(environ, start, honest)

    slow.meddle = meddle
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    with hearing(told.append):
        backend.provision(plan.manifest, plan.credentials)
    assert told == [Progress(3, 7, "tables")]


def _honest(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
    return honest(environ, start)


def test_status_urls_alone_make_a_provisioner_observable(serve: Serve) -> None:
    assert Webhook(serve(verbs=ACTIONS, seconds=1).dsn()).observable
    assert not Webhook(serve(verbs=ACTIONS).dsn()).observable
