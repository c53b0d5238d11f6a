"""Object lock: what keeps a version from being deleted, and until when."""

import datetime as dt

from outbox.rows import Json
from worker.backends.s3.session import DENIED, Session

ASKED = 200  # of the versions that could not be deleted; two requests each
_UNLOCKED = (
    *("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest", "NoSuchKey"),
    *("NoSuchVersion", "NotImplemented", "MethodNotAllowed"),
)


def words(session: Session, bucket: str, left: list[Json], count: int) -> str | None:
    """Why these versions cannot be deleted, for an operator; None where none of those asked for is locked."""
    modes: dict[str, dt.datetime] = {}
    held = 0
    for one in left[:ASKED]:
        which = {"Key": one["Key"], "VersionId": one["VersionId"]}
        found = session.call("get_object_retention", bucket, expects=(*_UNLOCKED, *DENIED), **which)
        if retention := found.get("Retention"):
            mode, until = str(retention["Mode"]), retention["RetainUntilDate"]
            modes[mode] = max(until, modes.get(mode, until))
        found = session.call("get_object_legal_hold", bucket, expects=(*_UNLOCKED, *DENIED), **which)
        held += found.get("LegalHold", {}).get("Status") == "ON"
    if not (modes or held):
        return None
    said = [_retained(mode, until) for mode, until in sorted(modes.items())]
    if held:
        said.append(f"{held} have a legal hold, which has no end: its owner must take it off")
    asked = f", of which {ASKED} were asked" if count > ASKED else ""
    return f"object lock keeps {count} versions of bucket {bucket!r}{asked}: {'; '.join(said)}; then re-drive this job"


def _retained(mode: str, until: dt.datetime) -> str:
    day = until.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if mode == "GOVERNANCE":
        return (
            f"retention GOVERNANCE until {day} at the latest, or now where the account may "
            "s3:BypassGovernanceRetention and the dsn says bypass_governance=true"
        )
    return f"retention {mode} until {day} at the latest, which no account can shorten"
