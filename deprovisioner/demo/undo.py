"""The demo's first scene: DELETEs that are taken back."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import httpx

from deprovisioner.demo.witnesses import Finding, Holding, Servers, contents, finding, is_shut, session

LONGEST_SECONDS = 30  # for each of the two; on an idle machine both take less than a second
POLL_SECONDS = 0.02  # two customers ask so often

T = TypeVar("T")


def take_back(
    http: httpx.Client, servers: Servers, holdings: list[Holding], say: Callable[[str], object]
) -> list[Finding]:
    """Delete what customers are using, see them cut off, restore it, and see what they have then: one of each kind."""
    before = {holding.id: contents(holding) for holding in holdings}
    with ExitStack() as stack:
        sessions = [stack.enter_context(session(holding)) for holding in holdings]
        began = time.monotonic()
        answers = [http.delete(_path(holding)).raise_for_status().json() for holding in holdings]
        _wait_until_none(sessions, lambda answers_still: answers_still())
        say(f"one DELETE of each kind: the customers' open sessions were cut off after {_seconds_since(began)}")
    _wait_until_none(holdings, lambda holding: not is_shut(servers, holding))
    cut_off = [holding for holding in holdings if contents(holding) is None and is_shut(servers, holding)]
    say(f"no login works, nothing is destroyed before {answers[0]['resource']['purge_at']}; restoring both")
    began = time.monotonic()
    for holding in holdings:
        http.post(f"{_path(holding)}/restore", json={"reason": "deleted by mistake"}).raise_for_status()
    _wait_until_none(holdings, lambda holding: _status(http, holding) != "active")
    say(f"both are active again after {_seconds_since(began)}; logging in with the same connection strings")
    whole = [holding for holding in holdings if before[holding.id] and contents(holding) == before[holding.id]]
    return [
        finding("cut off by a DELETE", cut_off, 1, "logging in; pg_database, pg_roles; ACL GETUSER"),
        finding("restored with all data", whole, 1, "the customers' own credentials"),
    ]


def _path(holding: Holding) -> str:
    return f"/v1/resources/{holding.id}"


def _status(http: httpx.Client, holding: Holding) -> Any:
    return http.get(_path(holding)).raise_for_status().json()["status"]


def _wait_until_none(items: Iterable[T], holds: Callable[[T], bool]) -> None:
    """Return when `holds` is false for every item, or after LONGEST_SECONDS: the findings then say what is broken."""
    end = time.monotonic() + LONGEST_SECONDS
    for item in items:
        while holds(item) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)


def _seconds_since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"
