"""Is it alive; can it serve."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

import migrations
from outbox import db, doorbell

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, bool]:
    """The process answers."""
    return {"ok": True}


@router.get("/readyz")
def readyz() -> JSONResponse:
    """200 while DELETEs can be accepted: the control database answers, at the schema this code knows.

    A dead broker is told, but does not make it unready: the sweep finds the work.
    """
    broker = doorbell.broker_alive()
    try:
        with db.statement() as session:
            at = migrations.current(session)
    except SQLAlchemyError as error:
        return JSONResponse({"ok": False, "database": repr(error.__cause__ or error), "broker": broker}, 503)
    ok = at == migrations.head()
    told = "ok" if ok else f"at revision {at}, not {migrations.head()}: run `deprovisioner migrate`"
    return JSONResponse({"ok": ok, "database": told, "broker": broker}, 200 if ok else 503)
