"""The reference provisioner of `examples/`, served from this process; its witnesses; faults that a test asks for."""

import base64
import json
import secrets
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from deprovisioner.up import servers as embedded
from examples.provisioner.app import ACTIONS, QUESTIONS, make_app
from examples.provisioner.notebooks import Notebooks, hashed
from tests.support.servers import server_folder

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ++/").decode()
VERBS = ACTIONS + QUESTIONS
App = Callable[[dict[str, Any], Any], Iterable[bytes]]
# Takes the place of the application: what came, how to begin an answer, and the honest application.
Meddle = Callable[[dict[str, Any], Any, App], Iterable[bytes]]


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]


class Served:
    """A provisioner at an address of this machine. `meddle` may be set at any time."""

    def __init__(
        self,
        home: Path | None = None,
        *,
        verbs: tuple[str, ...] = VERBS,
        seconds: float = 0,
        port: int = 0,
        tls: tuple[str, str] | None = None,  # certificate and key, as files
    ) -> None:
        self.notebooks = Notebooks(home or server_folder("provisioner"))
        self.requests: list[Request] = []
        self.meddle: Meddle | None = None
        app = make_app(self.notebooks, SECRET, verbs=verbs, seconds=seconds)
        self._honest: App = app.wsgi_app
        self._server = make_server(
            "127.0.0.1",
            port or embedded.free_port(),  # no connection of another program takes it while the server is restarted
            self._answer,
            threaded=True,
            request_handler=_Quiet,
            ssl_context=tls,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def dsn(self, **words: object) -> str:
        """For the product; `words` are parameters beside the secret."""
        return "&".join([f"{self.url}/?secret={SECRET}", *(f"{name}={value}" for name, value in words.items())])

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for thread in threading.enumerate():
            if thread.name == "work":
                thread.join(30)

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        headers = {name[5:].replace("_", "-").lower(): said for name, said in environ.items() if name[:5] == "HTTP_"}
        self.requests.append(Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], headers))
        return self._honest(environ, start) if self.meddle is None else self.meddle(environ, start, self._honest)

    # -- witnesses ---------------------------------------------------------------------------------------------

    def effects(self, external: str | None = None) -> list[str]:
        """The verbs that had an effect, in order, by the provisioner's own log; of one object, or of all."""
        if not self.notebooks.log.exists():
            return []
        lines = map(json.loads, self.notebooks.log.read_text().splitlines())
        return [line["verb"] for line in lines if external in (None, line["external"])]

    def asked(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(request.path for request in self.requests)

    def query(self, sql: str, *words: object) -> list[tuple[Any, ...]]:
        """On the provisioner's own database."""
        with closing(sqlite3.connect(self.notebooks.file, timeout=60, isolation_level=None)) as db:
            return db.execute(sql, words).fetchall()

    def marked(self) -> dict[str, str]:
        """Make a notebook that a resource has; its manifest."""
        generation, external = str(uuid.uuid4()), f"res_{uuid.uuid4().hex}"
        sql = "INSERT INTO notebooks (external, password, generation) VALUES (?, 'x', ?)"
        self.query(sql, external, generation)
        return {"external": external, "generation": generation, "server": self.notebooks.server}

    def by_hand(self, external: str) -> str:
        """Make a notebook as its owner would; its password."""
        password = secrets.token_urlsafe(16)
        self.query("INSERT INTO notebooks (external, password) VALUES (?, ?)", external, hashed(password))
        return password


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        """Nothing: the test has `requests`."""


def says(status: str, body: bytes = b"{}", server: str | None = None, **headers: str) -> Meddle:
    """An answer of no provisioner, or one with the identity `server`; `Retry_After` is a header's name."""

    def meddle(_: dict[str, Any], start: Any, __: App) -> Iterable[bytes]:
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        start(status, [*(said | ({"X-Deprovisioner-Server": server} if server else {})).items()])
        return [body]

    return meddle


def only(path: str, meddle: Meddle, *, times: int = 10**6) -> Meddle:
    """Meddle with one path, and only so often; the rest is honest."""
    left = iter(range(times))

    def chosen(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        if environ["PATH_INFO"] == path and next(left, None) is not None:
            return meddle(environ, start, honest)
        return honest(environ, start)

    return chosen


def after(does: Callable[[], object], then: Meddle | None = None) -> Meddle:
    """The honest work is done; then something happens before its answer, or another answer takes its place."""

    def meddle(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        answer = list(honest(environ, start if then is None else lambda *_, **__: None))
        does()
        return answer if then is None else then(environ, start, honest)

    return meddle


def before(does: Callable[[], object]) -> Meddle:
    """Something happens, and nothing is done."""

    def meddle(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        does()
        return says("500 Internal Server Error")(environ, start, honest)

    return meddle
