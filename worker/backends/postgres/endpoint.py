"""The address that customers are given: the service's own, or the public one of the backends file."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from outbox.rows import Json


@dataclass(frozen=True)
class Public:
    """What the backends file says of a backend's address for customers; None: as in the service's own dsn."""

    host: str | None = None
    port: int | None = None
    sslmode: str | None = None


def credentials(
    parameters: Mapping[str, str], public: Public, *, reached: tuple[str, int], database: str, user: str, password: str
) -> Json:
    """What opens a database; `dsn` is a URL of libpq.

    `parameters` are those of the service's dsn, parsed; `reached` is the host and the port that the service reached.
    A dsn of several hosts gives the customer all of them, with `host` and `port` of the one that was reached.
    """
    host, port = reached
    several = parameters.get("host") or parameters.get("hostaddr") or ""
    hosts = several.split(",") if "," in several and public.host is None else [public.host or host]
    ports = parameters.get("port", "").split(",") if len(hosts) > 1 else [str(port)]
    if public.port is not None or len(ports) != len(hosts):
        ports = [str(public.port or ports[0] or port)] * len(hosts)
    query = {"sslmode": public.sslmode or parameters.get("sslmode")}
    if len(hosts) > 1:
        query["target_session_attrs"] = parameters.get("target_session_attrs")
    return {
        "dsn": _url(hosts, ports, {key: value for key, value in query.items() if value}, database, user, password),
        "host": public.host or host,
        "port": public.port or port,
        "database": database,
        "user": user,
        "password": password,
    } | ({"sslmode": query["sslmode"]} if query["sslmode"] else {})


def _url(hosts: list[str], ports: list[str], query: dict[str, str], database: str, user: str, password: str) -> str:
    opener, name = f"{quote(user, safe='')}:{quote(password, safe='')}", quote(database, safe="")
    places = ",".join(
        f"{_bracketed(host)}:{port}" if port else _bracketed(host) for host, port in zip(hosts, ports, strict=True)
    )
    if any(host.startswith(("/", "@")) or not host for host in hosts):  # a socket's folder is no part of an authority
        query, places = {"host": ",".join(hosts), "port": ",".join(ports)} | query, ""
    return f"postgresql://{opener}@{places}/{name}" + (
        f"?{urlencode(query, quote_via=quote, safe='/')}" if query else ""
    )


def _bracketed(host: str) -> str:
    return f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
