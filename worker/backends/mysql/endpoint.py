"""The address of a server: the service's own, read from its dsn, and the one that customers are given."""

import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from outbox.errors import SettingsError
from outbox.rows import Json

_TLS = ("disable", "require", "verify-ca", "verify-full")
_FORM = "mysql://USER:PASSWORD@HOST:PORT/SCHEMA (it is not shown: it may hold a password)"


@dataclass(frozen=True)
class Public:
    """What the backends file says of a backend's address for customers; None: as in the service's own dsn."""

    host: str | None = None
    port: int | None = None
    sslmode: str | None = None

    def __post_init__(self) -> None:
        if self.sslmode is not None and self.sslmode not in _TLS:
            raise SettingsError(f"'sslmode' {self.sslmode!r} is none of {', '.join(_TLS)}")


@dataclass(frozen=True)
class Address:
    """A dsn, taken apart. `schema`: the service's own, in which it keeps its records."""

    host: str
    port: int
    user: str
    password: str
    schema: str
    socket: str | None
    sslmode: str
    sslrootcert: str | None

    @classmethod
    def read(cls, dsn: str) -> "Address":
        """From `mysql://user:password@host:port/schema?sslmode=…&sslrootcert=…&socket=…`. Raises SettingsError."""
        try:
            parts = urlsplit(dsn)
            query = dict(parse_qsl(parts.query, strict_parsing=True) if parts.query else ())
            port = parts.port or 3306
        except ValueError:
            raise SettingsError(f"the dsn is not of the form {_FORM}") from None
        schema = unquote(parts.path.removeprefix("/"))
        if parts.scheme not in ("mysql", "mariadb") or not (parts.hostname and parts.username and schema):
            raise SettingsError(f"the dsn is not of the form {_FORM}")
        if unknown := sorted(query.keys() - {"sslmode", "sslrootcert", "socket"}):
            raise SettingsError(f"the dsn has a parameter {unknown[0]!r}; it knows sslmode, sslrootcert and socket")
        sslmode = query.get("sslmode", "disable")
        if sslmode not in _TLS:
            raise SettingsError(f"the dsn's sslmode is none of {', '.join(_TLS)}")
        return cls(
            host=parts.hostname,
            port=port,
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            schema=schema,
            socket=query.get("socket"),
            sslmode=sslmode,
            sslrootcert=query.get("sslrootcert"),
        )

    def reached(self) -> dict[str, Any]:
        """How the client reaches the server, without an account."""
        place: dict[str, Any] = {"host": self.host, "port": self.port, "unix_socket": self.socket}
        # Said aloud: else the client reads all certificates of the machine for each connection, some 10 ms.
        return place | ({"ssl_disabled": True} if self.sslmode == "disable" else {"ssl": self._tls()})

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.sslrootcert)
        context.check_hostname = self.sslmode == "verify-full"
        if self.sslmode == "require":
            context.verify_mode = ssl.CERT_NONE
        return context


def credentials(address: Address, public: Public, *, database: str, user: str, password: str) -> Json:
    """What opens a schema; `url` is one that most clients read."""
    host, port = public.host or address.host, public.port or address.port
    sslmode = public.sslmode or (address.sslmode if address.sslmode != "disable" else None)
    place = f"[{host}]" if ":" in host else host
    opener = f"{quote(user, safe='')}:{quote(password, safe='')}"
    opened: Json = {
        "url": f"mysql://{opener}@{place}:{port}/{quote(database, safe='')}",
        "host": host,
        "port": port,
        "database": database,
        "user": user,
        "password": password,
    }
    return opened | ({"sslmode": sslmode} if sslmode else {})
