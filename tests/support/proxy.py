"""A TCP proxy that loses an answer: the connection breaks while the other side is asked one certain thing."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal

# Before the question is passed on; once it is, not waiting for what becomes of it; when its answer has come.
Moment = Literal["before", "during", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "during", "after")


class Proxy:
    """Listens on `port` of the loopback for `upstream`; breaks the connections `cut` names."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.cuts = 0
        self._armed: tuple[Moment, bytes, int] | None = None
        self._held: tuple[bytes, Callable[[], object]] | None = None
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, moment: Moment, words: str, times: int = 1) -> None:
        """Break the next `times` connections that ask something with `words` in it."""
        with self._lock:
            self.cuts = 0
            self._armed = (moment, words.encode(), times)

    def hold(self, words: str, act: Callable[[], object]) -> None:
        """Do `act` while the next question with `words` in it waits to be passed on."""
        with self._lock:
            self.cuts = 0
            self._held = (words.encode(), act)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.upstream)) as server:
            lost = threading.Event()
            back = threading.Thread(target=self._answer, args=(server, client, lost), daemon=True)
            back.start()
            while asked := client.recv(1 << 20):
                self._wait(asked)
                moment = self._reached(asked)
                if moment == "after":
                    lost.set()
                if moment != "before":
                    server.sendall(asked)
                if moment == "after":
                    back.join()
                if moment:
                    break
            else:
                server.shutdown(socket.SHUT_WR)
                back.join()
                return
            # A reset, not an orderly end: what a machine that vanishes looks like.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _answer(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(1 << 20):
                if lost.is_set():
                    return
                client.sendall(answer)
            client.shutdown(socket.SHUT_WR)

    def _wait(self, asked: bytes) -> None:
        with self._lock:
            if self._held is None or self._held[0] not in asked:
                return
            act, self._held = self._held[1], None
            self.cuts += 1
        act()

    def _reached(self, asked: bytes) -> Moment | None:
        with self._lock:
            if self._armed is None or self._armed[1] not in asked:
                return None
            moment, words, times = self._armed
            self._armed = (moment, words, times - 1) if times > 1 else None
            self.cuts += 1
            return moment
