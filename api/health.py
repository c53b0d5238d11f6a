"""Whether the process is alive, and whether it can serve."""

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

    `broker` says whether the broker answers. A dead broker leaves the API ready: the workers' sweep finds the work.
    """
    broker = doorbell.broker_alive()
    try:
        with db.statement() as session:
            at = migrations.current(session)
    except SQLAlchemyError as error:
        return JSONResponse({"ok": False, "database": repr(error.__cause__ or error), "broker": broker}, 503)
    ok = at == migrations.head()
    database = "ok" if ok else f"at revision {at}, not {migrations.head()}: run `deprovisioner migrate`"
    return JSONResponse({"ok": ok, "database": database, "broker": broker}, 200 if ok else 503)
