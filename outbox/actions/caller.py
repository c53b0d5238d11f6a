"""Who asks, and what the edge lends to an action."""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType, Protocol, TypeVar

from sqlalchemy import Connection

from outbox import tokens
from outbox.errors import BadRequest, Forbidden

T = TypeVar("T")


@dataclass(frozen=True)
class Caller:
    """Who asks. `tenant` is None for an operator, who sees all tenants."""

    actor: str
    tenant: str | None


# A caller that `operator` has let through; the type checker refuses any other where an operator is needed.
Operator = NewType("Operator", Caller)


class Ask(Protocol):
    """Runs a function on a database session of its own, and returns its answer."""

    def __call__(self, act: Callable[[Connection], T]) -> T:
        """Each statement of `act` is a transaction. It may run again when the connection is lost."""


@dataclass(frozen=True)
class Edge:
    """What an edge lends to an action: sessions, and the doorbell that wakes the workers and never raises.

    `transact` is `ask` in one transaction.
    """

    ask: Ask
    transact: Ask
    ring: Callable[[], object]


def caller(db: Connection, secret: str) -> Caller | None:
    """The caller that has this token; None when the token is unknown or was revoked."""
    token = tokens.find(db, secret)
    return None if token is None else Caller(token.actor, token.tenant)


def operator(who: Caller) -> Operator:
    """The caller as an operator. Raises Forbidden."""
    if who.tenant is not None:
        raise Forbidden(f"this needs an operator's token; yours belongs to tenant {who.tenant!r}")
    return Operator(who)


def named_operator(who: Operator) -> Operator:
    """An operator with a token of their own, as each of two must be: a shell user's name proves nothing.

    Raises Forbidden.
    """
    if not who.actor.startswith("token:"):
        raise Forbidden(f"{who.actor} has no token: what takes two operators needs the token of each of them")
    return who


# Of request ids that are made of an Idempotency-Key.
_KEYS = uuid.UUID("6b0f3a52-6d7e-4d0c-9f5a-0f1f6d3b7c11")


def request_of(who: Caller, verb: str, resource_id: uuid.UUID, key: str | None) -> uuid.UUID:
    """The request's id: the same for the same key of a tenant, or of an operator; without a key a new one."""
    if key is None:
        return uuid.uuid4()
    whose = ["operator", who.actor] if who.tenant is None else ["tenant", who.tenant]
    return uuid.uuid5(_KEYS, json.dumps([*whose, verb, str(resource_id), key]))


def operator_at_a_shell(user: str) -> Operator:
    """The user of a shell has the control database's password, and so is an operator."""
    return Operator(Caller(f"cli:{user}", None))


def own_tenant(who: Caller, named: str | None) -> str | None:
    """The tenant that a request is about; None when an operator names none. Raises BadRequest."""
    if who.tenant is not None and named not in (None, who.tenant):
        raise BadRequest(f"tenant: this token belongs to {who.tenant!r}; leave `tenant` out")
    return who.tenant or named
