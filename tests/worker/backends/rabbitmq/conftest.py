"""A backend on the session's RabbitMQ node, and a vhost that it provisioned."""

import http.server
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.rabbitmq_servers import RabbitmqServer
from worker.backends.rabbitmq import Rabbitmq

Provisioned = tuple[dict[str, Any], dict[str, Any]]
Answers = Callable[..., str]


@pytest.fixture
def server(rabbitmq_server: RabbitmqServer) -> RabbitmqServer:
    return rabbitmq_server


@pytest.fixture
def backend(server: RabbitmqServer) -> Rabbitmq:
    return Rabbitmq(server.service_dsn)


@pytest.fixture
def provisioned(backend: Rabbitmq) -> Provisioned:
    """A manifest, and its customer's credentials."""
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials), plan.credentials


@pytest.fixture
def by_hand(server: RabbitmqServer) -> Provisioned:
    """A vhost and a user as a platform might have made them, to be adopted; names are awkward."""
    unique = uuid.uuid4().hex
    names = {"vhost": f"or/de%2Frs é {unique}", "user": f"app/{unique}"}
    server.api("PUT", "vhosts", names["vhost"], body={"description": "orders of the shop", "tags": ["shop"]})
    server.api("PUT", "users", names["user"], body={"password": "made-by-hand", "tags": ["management", "shop"]})
    permissions = {"configure": "^a", "write": "^b", "read": ".*"}
    server.api("PUT", "permissions", names["vhost"], names["user"], body=permissions)
    return names, names | {"password": "made-by-hand", "port": server.port}


@pytest.fixture
def answers() -> Iterator[Answers]:
    """Starts an HTTP server that gives one answer to everything; its address, with an account."""
    running = []

    def start(
        status: int, body: str = "", kind: str = "application/json", tls: Path | None = None, **headers: str
    ) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in (
                    ("Content-Type", kind),
                    ("Content-Length", str(len(body.encode()))),
                    *headers.items(),
                ):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        made.daemon_threads = True
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            made.socket = context.wrap_socket(made.socket, server_side=True)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((made, thread))
        return f"http://someone:a-secret@127.0.0.1:{made.server_port}"

    yield start
    for made, thread in running:
        made.shutdown()
        thread.join()
        made.server_close()
