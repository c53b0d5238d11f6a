"""Who calls, and how a route reaches the control database and the workers."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from cachetools import TTLCache
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection
from tenacity import retry, retry_if_exception, stop_after_attempt

from api.problems import Problem, invalid, shortened
from outbox import actions, db, rewinds
from outbox.actions import Caller, Edge
from outbox.doorbell import bell
from outbox.errors import Rewound

T = TypeVar("T")
# A revoked token opens nothing after this. Within it, no request costs a round trip to find out who calls.
TOKEN_CACHE_SECONDS = 2
# Only the event loop reads and writes it, so it needs no lock.
# With the caller: whether nothing may be written, since the control database went back in time.
_CACHE: TTLCache[str, tuple[Caller, bool]] = TTLCache(maxsize=10_000, ttl=TOKEN_CACHE_SECONDS)
_READS = ("GET", "HEAD")
bearer = HTTPBearer(auto_error=False, description="a token that `deprovisioner token create` has made")


def ask_once(act: Callable[[Connection], T]) -> T:
    """Run `act` on a session, for what must not be repeated."""
    with db.statement() as session:
        return act(session)


_repeated = retry(retry=retry_if_exception(db.unreachable), stop=stop_after_attempt(3), reraise=True)


@_repeated
def ask(act: Callable[[Connection], T]) -> T:
    """Run `act` on a session, and repeat it: after a restart of the database the pool has only dead connections."""
    return ask_once(act)


def transact_once(act: Callable[[Connection], T]) -> T:
    """Run `act` in one transaction."""
    with db.transaction() as session:
        return act(session)


# What the routes lend to actions: to those that are safe to repeat, and to those that are not.
edge = Edge(ask, _repeated(transact_once), bell.ring)
edge_once = Edge(ask_once, transact_once, bell.ring)


# A listing takes several: all must fit.
_MANY = {"label"}


async def caller(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Caller:
    """The bearer of the token, or 401; then 422 for a parameter or key that is given twice, one of which would win."""
    if given is None or not given.credentials:
        raise _unauthenticated("send `Authorization: Bearer TOKEN`; `deprovisioner token create` makes a token")
    secret = given.credentials
    known = _CACHE.get(secret)
    if known is None:
        found, still = await run_in_threadpool(ask, partial(_find, secret=secret))
        if found is None:
            raise _unauthenticated("this token is unknown or was revoked; `deprovisioner token create` makes a new one")
        known = _CACHE[secret] = found, still
    who, still = known
    if still and request.method not in _READS:
        raise Rewound
    names = [name for name, _ in request.query_params.multi_items()]
    for header in ("Idempotency-Key", "If-Match"):
        names += [header] * len(request.headers.getlist(header))
    if twice := next((name for name in names if names.count(name) > 1 and name not in _MANY), None):
        raise invalid(f"{shortened(twice)}: is given more than once; give it once")
    return who


def _find(db: Connection, secret: str) -> tuple[Caller | None, bool]:
    return actions.caller(db, secret), rewinds.rewound(db)


async def operator(who: Annotated[Caller, Depends(caller)]) -> actions.Operator:
    """The bearer of an operator's token, or 403."""
    return actions.operator(who)


Anyone = Annotated[Caller, Depends(caller)]
Operator = Annotated[actions.Operator, Depends(operator)]


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})
