"""Where a backend is. Only a worker reads that: the settings, which the API shares, keep no address."""

import os
from pathlib import Path

from outbox import settings
from outbox.errors import SettingsError


def address_of(backend: str) -> str:
    """The `dsn` of a backend, read from the backends file now; `env:NAME` is the value of that variable.

    Raises SettingsError when the variable is not set, or the file no longer has the backend.
    """
    path = Path(settings.get().need("backends"))
    table = settings.read_file(path).get("backends", {}).get(backend)
    if table is None:
        raise SettingsError(f"{path} no longer has a table [backends.{backend}]; restart the worker")
    dsn = str(table["dsn"])
    variable = settings.variable_of(dsn)
    if variable is None:
        return dsn
    if not os.environ.get(variable):
        raise SettingsError(f"{variable} is not set: backend {backend!r} takes its dsn from it (dsn = {dsn!r})")
    return os.environ[variable]
