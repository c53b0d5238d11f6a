"""The address that customers are given: the service's own host, or the public one of the backends file."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from outbox.errors import OutOfService, SettingsError
from outbox.rows import Json
from worker.backends.rabbitmq.session import Session

_TLS = {"disable": False, "require": True, "verify-ca": True, "verify-full": True}
_PROTOCOLS = {"amqp": False, "amqp/ssl": True}


@dataclass(frozen=True)
class Public:
    """What the backends file says of a backend's address for customers; None: as the server listens."""

    host: str | None = None
    port: int | None = None
    sslmode: str | None = None

    def __post_init__(self) -> None:
        if self.sslmode is not None and self.sslmode not in _TLS:
            raise SettingsError(
                f"'sslmode' {self.sslmode!r} has no meaning for RabbitMQ; 'disable' gives customers amqp://, "
                "'require', 'verify-ca' and 'verify-full' amqps://"
            )


def listener(session: Session) -> tuple[int, bool]:
    """The port on which the server takes AMQP clients, and whether these speak TLS there; without TLS first.

    Raises OutOfService where it takes none now.
    """
    found: Any = session.need("overview", columns="listeners")
    listens = [one for one in found.get("listeners", []) if one.get("protocol") in _PROTOCOLS]
    if not listens:
        raise OutOfService("the server listens for no AMQP clients now")
    first = min(listens, key=lambda one: _PROTOCOLS[one["protocol"]])
    return int(first["port"]), _PROTOCOLS[first["protocol"]]


def credentials(session: Session, public: Public, *, vhost: str, user: str, password: str) -> Json:
    """What opens a vhost; `url` is one that AMQP clients read: amqp:// or amqps://."""
    port, tls = listener(session)
    tls = tls if public.sslmode is None else _TLS[public.sslmode]
    host, port = public.host or session.server.host, public.port or port
    opener = f"{quote(user, safe='')}:{quote(password, safe='')}"
    place = f"[{host}]" if ":" in host else host
    url = f"{'amqps' if tls else 'amqp'}://{opener}@{place}:{port}/{quote(vhost, safe='')}"
    return {"url": url, "host": host, "port": port, "vhost": vhost, "user": user, "password": password}
