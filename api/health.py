"""Whether the process is alive, and whether it can serve."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from outbox import db, doorbell
from outbox.doctor.checks.server import SETTINGS
from outbox.errors import Unconfirmed

router = APIRouter(tags=["health"])

_STANDBY_MISSING = text("""
    SELECT current_setting('synchronous_standby_names') <> '' AND NOT EXISTS (SELECT FROM pg_stat_replication)""")


@router.get("/healthz")
async def healthz() -> dict[str, bool]:
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
            standby_missing = session.execute(_STANDBY_MISSING).scalar_one()
            wrong = session.execute(text(SETTINGS)).all()
        if not standby_missing:
            db.must_confirm(always=True)
    except Unconfirmed as error:  # a standby is connected, and not one that confirms
        return JSONResponse({"ok": False, "database": str(error), "broker": broker}, 503)
    except SQLAlchemyError as error:
        return JSONResponse({"ok": False, "database": repr(error.__cause__ or error), "broker": broker}, 503)
    if standby_missing:
        missing = "synchronous_standby_names is set and no standby is connected: no commit can be confirmed"
        return JSONResponse({"ok": False, "database": missing, "broker": broker}, 503)
    if wrong:
        said = "; ".join(f"{each.id} {each.note}" for each in wrong)
        return JSONResponse({"ok": False, "database": f"{said} (`deprovisioner doctor`)", "broker": broker}, 503)
    ok = at == migrations.head()
    database = "ok" if ok else f"at revision {at}, not {migrations.head()}: run `deprovisioner migrate`"
    return JSONResponse({"ok": ok, "database": database, "broker": broker}, 200 if ok else 503)
