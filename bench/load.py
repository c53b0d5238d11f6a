"""The process that sends the DELETEs. It uses raw sockets and keeps them open, so that the server's time dominates.

`python -m bench.load PORT CLIENTS WARM COUNT`, with the token on the first line of stdin. It deletes WARM resources
without timing them, prints "ready", and waits for a line. Then it deletes COUNT more, each once, and prints one line of
JSON: the seconds it took, the latencies in milliseconds, and the CPU seconds that it used itself.
"""

import gc
import hashlib
import json
import re
import resource
import selectors
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def resource_id(number: int) -> uuid.UUID:
    """The id of resource `number`; `measures.seed` computes the same in SQL."""
    return uuid.UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest())


class Client:
    """One connection that stays open, with at most one DELETE in progress."""

    def __init__(self, port: int, token: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tail = f" HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        self._received = b""
        self._sent = 0.0

    def send(self, id: uuid.UUID) -> None:
        """Send the DELETE of this resource."""
        self._received = b""
        request = f"DELETE /v1/resources/{id}".encode() + self._tail
        self._sent = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Read what has arrived: the seconds it took when the answer is complete, else None. Only a 202 is accepted."""
        got = self.socket.recv(65536)
        assert got, f"the API closed the connection after {self._received!r}"
        self._received += got
        head, ended, body = self._received.partition(b"\r\n\r\n")
        if not ended or len(body) < int(_LENGTH.search(head)[1]):  # type: ignore[index]
            return None
        took = time.perf_counter() - self._sent
        assert head.startswith(b"HTTP/1.1 202 "), self._received
        return took

    def delete(self, id: uuid.UUID) -> None:
        """Send the DELETE and wait for its answer."""
        self.send(id)
        while self.receive() is None:
            pass


def run(clients: Iterable[Client], ids: Iterable[uuid.UUID]) -> list[float]:
    """DELETE each resource once, by the next free client; return the latencies in seconds.

    After each answer one more client joins. When `clients` creates them on demand, each connects while others are being
    served, as real clients do. If all connected at once to idle processes, the process that wakes first would get most
    of the connections.
    """
    joining, todo, took = iter(clients), iter(ids), []
    with selectors.DefaultSelector() as waiting:

        def ask(client: Client | None) -> None:
            if client is not None and (id := next(todo, None)) is not None:
                waiting.register(client.socket, selectors.EVENT_READ, client)
                client.send(id)

        ask(next(joining))
        while waiting.get_map():
            answered = waiting.select(timeout=30)
            assert answered, "the API has not answered for 30 s"
            for key, _ in answered:
                if (seconds := key.data.receive()) is not None:
                    took.append(seconds)
                    waiting.unregister(key.fileobj)
                    ask(key.data)
                    ask(next(joining, None))
    return took


def main() -> None:
    """Send the DELETEs as the module's docstring says."""
    port, most, warm, count = map(int, sys.argv[1:])
    token = sys.stdin.readline().strip()
    clients: list[Client] = []
    ids = [resource_id(number) for number in range(1, warm + count + 1)]
    run(_connecting(clients, port, token, most), ids[:warm])
    assert len(clients) == most, f"{len(clients)} of {most} clients connected"
    print("ready", flush=True)
    sys.stdin.readline()
    gc.disable()
    cpu, began = _cpu_seconds(), time.perf_counter()
    took = run(clients, ids[warm:])
    seconds = time.perf_counter() - began
    result = {"seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu, "ms": [1000 * each for each in took]}
    print(json.dumps(result), flush=True)


def _connecting(clients: list[Client], port: int, token: str, most: int) -> Iterator[Client]:
    for _ in range(most):
        clients.append(Client(port, token))
        yield clients[-1]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
