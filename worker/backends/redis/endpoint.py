"""The address that customers are given: the service's own, or the public one of the backends file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from outbox.errors import SettingsError
from outbox.rows import Json

_TLS = {"disable": False, "require": True, "verify-ca": True, "verify-full": True}


@dataclass(frozen=True)
class Public:
    """What the backends file says of a backend's address for customers; None: as in the service's own URL."""

    host: str | None = None
    port: int | None = None
    sslmode: str | None = None

    def __post_init__(self) -> None:
        if self.sslmode is not None and self.sslmode not in _TLS:
            raise SettingsError(
                f"'sslmode' {self.sslmode!r} has no meaning for Redis; 'disable' gives customers redis://, "
                "'require', 'verify-ca' and 'verify-full' rediss://"
            )


def credentials(
    parameters: Mapping[str, Any], public: Public, *, tls: bool, user: str, password: str, prefix: str
) -> Json:
    """What opens a namespace; `url` is one that redis clients read: redis://, rediss:// or unix://.

    `parameters` are those of the service's own connection; `tls`: it is encrypted.
    """
    path = parameters.get("path") if public.host is None else None
    host, port = public.host or parameters.get("host", "localhost"), public.port or int(parameters.get("port", 6379))
    database = int(parameters.get("db") or 0)
    opener = f"{quote(user, safe='')}:{quote(password, safe='')}"
    opened = {"db": database, "user": user, "password": password, "prefix": prefix}
    if path is not None:
        return {"url": f"unix://{opener}@{quote(path)}?db={database}", "path": path} | opened
    scheme = "rediss" if (tls if public.sslmode is None else _TLS[public.sslmode]) else "redis"
    place = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    return {"url": f"{scheme}://{opener}@{place}:{port}/{database}", "host": host, "port": port} | opened
