"""Whether the backends are as they should be: asked by a worker when it starts, and by a person."""

from collections.abc import Sequence
from dataclasses import dataclass

from outbox.errors import BackendError, SettingsError
from outbox.logs import log
from outbox.settings import BackendConfig
from worker import backends
from worker.backends import Backend, Finding
from worker.intake import Intake


@dataclass(frozen=True)
class Checked:
    """What was found on a backend; `error` is why it could not be asked."""

    backend: str
    kind: str
    findings: Sequence[Finding] = ()
    error: str | None = None


def of(config: BackendConfig) -> Checked:
    """Build the backend of a configuration, and check it. Never raises."""
    try:
        backend = backends.build(config, protected=frozenset())
    except SettingsError as error:
        return Checked(config.name, config.kind, error=str(error))
    return check(config.name, config.kind, backend)


def check(name: str, kind: str, backend: Backend) -> Checked:
    """Check a backend. Never raises: a worker starts, and a person is told, whatever a server answers."""
    try:
        return Checked(name, kind, Intake(backend).check())
    except BackendError as error:
        return Checked(name, kind, error=str(error))
    except Exception as error:  # noqa: BLE001 - a bug of a kind must not end the worker; its words may hold secrets
        log.exception("backend_check_failed", backend=name)
        return Checked(name, kind, error=f"unexpected {type(error).__name__}")
