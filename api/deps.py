"""Who calls, and how a route reaches the control database."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeVar

from cachetools import TTLCache
from fastapi import Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection
from tenacity import retry, retry_if_exception, stop_after_attempt

from api.problems import Problem
from outbox import db, tokens

T = TypeVar("T")
# A revoked token opens nothing after this; a request more than that costs no round trip to find out who calls.
TOKEN_CACHE_SECONDS = 2
# Only the event loop's: no lock.
_CACHE: TTLCache[str, "Caller"] = TTLCache(maxsize=10_000, ttl=TOKEN_CACHE_SECONDS)
_bearer = HTTPBearer(auto_error=False, description="a token of `deprovisioner token create`")


@dataclass(frozen=True)
class Caller:
    """Who calls. `tenant` is None for an operator, who sees all tenants."""

    actor: str
    tenant: str | None


@retry(retry=retry_if_exception(db.unreachable), stop=stop_after_attempt(3), reraise=True)
def ask(act: Callable[[Connection], T]) -> T:
    """Run what is safe to repeat. After a restart of the database the first try finds only dead connections."""
    with db.statement() as session:
        return act(session)


async def caller(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    """The bearer of the token, or 401."""
    if given is None or not given.credentials:
        raise _unauthenticated("send `Authorization: Bearer TOKEN`; `deprovisioner token create` makes one")
    secret = given.credentials
    known = _CACHE.get(secret)
    if known is None:
        token = await run_in_threadpool(ask, partial(tokens.find, secret=secret))
        if token is None:
            raise _unauthenticated("this token is unknown or was revoked")
        known = _CACHE[secret] = Caller(actor=token.actor, tenant=token.tenant)
    return known


async def operator(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """The bearer of an operator's token, or 403."""
    if who.tenant is not None:
        raise Problem(403, "forbidden", "this needs an operator's token; yours is a tenant's")
    return who


Anyone = Annotated[Caller, Depends(caller)]
Operator = Annotated[Caller, Depends(operator)]


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})
