"""Whether the backends are as they should be: asked by each worker, and by a person."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy.exc import SQLAlchemyError

from outbox import db, findings
from outbox.errors import BackendError, DeprovisionerError, SettingsError
from outbox.logs import log
from outbox.settings import BackendConfig
from worker import backends
from worker.backends import Backend, Finding
from worker.intake import Intake

# A backend that was mended is shown as mended within this time.
EVERY_SECONDS = 3600.0


@dataclass(frozen=True)
class Checked:
    """What was found on a backend; `error` is why it could not be asked."""

    backend: str
    findings: Sequence[Finding] = ()
    error: str | None = None

    @property
    def faults(self) -> list[Finding]:
        """What somebody can mend, and should."""
        return [finding for finding in self.findings if not finding.inherent]


def of(config: BackendConfig) -> Checked:
    """Build the backend of a configuration, and check it. Never raises."""
    try:
        backend = backends.build(config, protected=frozenset())
    except SettingsError as error:
        return Checked(config.name, error=str(error))
    return check(config.name, backend)


def check(name: str, backend: Backend) -> Checked:
    """Check a backend. Never raises: a worker starts, and a person is told, whatever a server answers."""
    try:
        return Checked(name, Intake(backend).check())
    except BackendError as error:
        return Checked(name, error=str(error))
    except Exception as error:  # noqa: BLE001 - a bug of a kind must not end the worker; its words may hold secrets
        log.exception("backend_check_failed", backend=name)
        return Checked(name, error=f"unexpected {type(error).__name__}")


def keep_checking(served: Mapping[str, Backend], *, worker: str) -> None:
    """Check each backend now and then each hour, in a thread that ends with the process."""
    threading.Thread(target=_keep_checking, args=(served, worker), name="checks", daemon=True).start()


def _keep_checking(served: Mapping[str, Backend], worker: str) -> None:
    while True:
        for name, backend in served.items():
            report(check(name, backend), worker=worker)
        time.sleep(EVERY_SECONDS)


def report(checked: Checked, *, worker: str) -> None:
    """Log what was found, and keep what can be mended for the doctor. Never raises: the log has it anyway."""
    faults = [asdict(finding) for finding in checked.faults]
    for fault in faults:
        log.warning("backend_unsafe", backend=checked.backend, actor=worker, **fault)
    if checked.error:
        log.warning("backend_unchecked", backend=checked.backend, actor=worker, error=checked.error)
    try:
        with db.statement() as session:
            findings.record(session, checked.backend, faults, worker=worker, error=checked.error)
    except (SQLAlchemyError, DeprovisionerError) as error:
        log.warning("backend_check_not_recorded", backend=checked.backend, actor=worker, error=type(error).__name__)
