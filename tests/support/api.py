"""What a caller does with the HTTP API: create, wait, call at once; and the shape of an error."""

import threading
from collections.abc import Callable
from typing import Any

import httpx

from tests.support.witness import PATIENCE, eventually

KINDS = {"postgres": "pg-main", "redis": "redis-main"}  # each kind's backend in `servers.BACKENDS`


def create(api: httpx.Client, kind: str = "postgres", **words: Any) -> dict[str, Any]:
    """A new resource, which a worker has still to provision."""
    answer = api.post("/v1/resources", json={"kind": kind, "backend": KINDS.get(kind), "name": "orders"} | words)
    assert answer.status_code == 202, answer.text
    return answer.json()["resource"]


def until(api: httpx.Client, resource: dict[str, Any], status: str, within: float = PATIENCE) -> dict[str, Any]:
    """The resource, once it has that status."""

    def reached() -> dict[str, Any] | None:
        now = api.get(f"/v1/resources/{resource['id']}").json()
        return now if now["status"] == status else None

    return eventually(reached, within, f"{resource['id']} is {status}")  # type: ignore[return-value]


def at_once(n: int, act: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    """The answers of `act(0)` to `act(n - 1)`, each in a thread of its own, released together."""
    barrier, answers = threading.Barrier(n), [None] * n

    def one(number: int) -> None:
        barrier.wait()
        answers[number] = act(number)  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers  # type: ignore[return-value]


def problem(answer: httpx.Response, status: int, code: str) -> dict:
    """The body of an error, which must have this status, this code and the shape of RFC 9457."""
    body = answer.json()
    assert (answer.status_code, body.get("code")) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code"} <= set(body)
    assert body["status"] == status
    if code == "invalid_request":
        assert all(set(wrong) == {"field", "message"} for wrong in body["errors"]), body
        assert body["errors"], "each field with its message"
    return body
