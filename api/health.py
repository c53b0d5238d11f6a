"""Whether the process is alive, and whether it can serve."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from outbox import db, doorbell, rewinds
from outbox.batching import GroupCommit
from outbox.doctor.checks.server import SETTINGS
from outbox.errors import Rewound, Unconfirmed
from outbox.logs import log

router = APIRouter(tags=["health"])

_STANDBY_MISSING = text("""
    SELECT current_setting('synchronous_standby_names') <> '' AND NOT EXISTS (SELECT FROM pg_stat_replication)""")

_FLAWED = text("""
    SELECT EXISTS (SELECT FROM backend_checks WHERE findings <> '[]')
        OR EXISTS (SELECT FROM memories WHERE behind_since IS NOT NULL)""")


@router.get("/healthz")
async def healthz() -> dict[str, bool]:
    """The process answers."""
    return {"ok": True}


Readiness = tuple[dict[str, Any], int]


class ReadinessOut(BaseModel):
    """Whether DELETEs can be accepted, and if not, why."""

    ok: bool
    database: str
    broker: bool
    warnings: str | None = None


@router.get("/readyz", response_model=ReadinessOut, responses={503: {"model": ReadinessOut}})
async def readyz() -> JSONResponse:
    """200 while DELETEs can be accepted: the control database answers, at the schema this code knows.

    `warnings` is there while a worker's check found fault with a backend, or one went back in time.
    `broker` says whether the broker answers. A dead broker leaves the API ready: the workers' sweep finds the work.
    """
    body, status = await _checks.do_async(None, alone=_no_answer)
    return JSONResponse(body, status)


async def _no_answer() -> Readiness:
    return {"ok": False, "database": "no answer in time; the log of the API may say why", "broker": False}, 503


def _check() -> Readiness:
    broker = doorbell.broker_alive()
    try:
        with db.statement() as session:
            at = migrations.current(session)
            standby_missing = session.execute(_STANDBY_MISSING).scalar_one()
            wrong = session.execute(text(SETTINGS)).all()
            ok = at == migrations.head()
            rewound = ok and rewinds.rewound(session)
            flawed = ok and session.execute(_FLAWED).scalar_one()
        if not standby_missing:
            db.must_confirm(always=True)
    except Unconfirmed as error:  # a standby is connected, and not one that confirms
        return {"ok": False, "database": str(error), "broker": broker}, 503
    except SQLAlchemyError as error:  # it names host, port and user, and anybody may read the answer
        log.error("readiness_failed", error=repr(error.__cause__ or error))
        unreachable = "out of reach, or it refuses to work; the log of the API says why"
        return {"ok": False, "database": unreachable, "broker": broker}, 503
    if standby_missing:
        missing = "synchronous_standby_names is set and no standby is connected: no commit can be confirmed"
        return {"ok": False, "database": missing, "broker": broker}, 503
    if wrong:
        log.error("readiness_failed", error="; ".join(f"{each.id} {each.note}" for each in wrong))
        said = f"{', '.join(str(each.id) for each in wrong)}: wrong settings (`deprovisioner doctor`)"
        return {"ok": False, "database": said, "broker": broker}, 503
    if not ok:
        database = f"at revision {at}, not {migrations.head()}: run `deprovisioner migrate`"
        return {"ok": False, "database": database, "broker": broker}, 503
    if rewound:
        return {"ok": False, "database": f"rewound: {Rewound()}", "broker": broker}, 503
    warnings = {"warnings": "a backend is not as it should be (`deprovisioner doctor`)"} if flawed else {}
    return {"ok": True, "database": "ok", "broker": broker} | warnings, 200


# Anybody may ask, so all who ask while a check runs share the next one.
_checks: GroupCommit[None, Readiness] = GroupCommit("readiness", lambda asked: [_check()] * len(asked))
