"""The product's own worker or API process, which sends itself a signal at one boundary of what it does.

The product has no failpoints: this entry point puts them around it. A boundary is the statement of a
transition on the control database, or a statement or command that changes a backend.

    CRASH_AT=before:DROP DATABASE python -m tests.support.crash_points worker

`before` is before the statement leaves the process; `after` is when the server has answered, so has
committed, and the process has not yet used the answer. `COMMIT#2` is the second COMMIT. CRASH_SIGNAL is the
signal (SIGKILL), CRASH_ONCE a file whose existence spares the process, so that a restart lives,
CRASH_ONLY a name that a statement on PostgreSQL must be about, and CRASH_TRACE a file that gets the name
of each boundary reached.
"""

import contextvars
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import redis
import sqlalchemy
from redis.client import Pipeline
from sqlalchemy import event

from deprovisioner import cli
from outbox import breakers, jobs, resources
from outbox.states import TRANSITIONS
from worker.backends.postgres import obstacles
from worker.backends.postgres.session import Session
from worker.backends.redis.identity import SERVER_KEY, SERVER_USER
from worker.memory import Memories
from worker.pool import Pool

_ALSO = {
    "enqueue_all": (jobs, "enqueue"),
    "start_all": (jobs, "start"),
    "complete_all": (jobs, "complete"),
    "start_provision": (jobs, "start"),
    "heartbeat": (jobs, "heartbeat"),
    "still": (jobs, "heartbeat"),
    "register": (resources, "register"),
    "trip": (breakers, "open breaker"),
    "close": (breakers, "close breaker"),
}
# Two statements of one function, and of one transaction.
_TOGETHER = ("cancel", "restore")
CONTROL = {t.name: (jobs, t.name) for t in TRANSITIONS if t.name not in _TOGETHER} | _ALSO
# A brake's count, inside the transaction of a start.
_COUNTS = "INSERT INTO brake_starts"
_WRITES = {"SET", "ACL SETUSER", "ACL SAVE", "ACL DELUSER", "CLIENT KILL", "EVAL"}


# This thread writes a memory before a destruction: on a busy machine the job's own thread does.
_remembering = contextvars.ContextVar("remembering", default=False)


def _remembers(keep: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(keep)
    def kept(*words: Any) -> Any:
        token = _remembering.set(True)
        try:
            return keep(*words)
        finally:
            _remembering.reset(token)

    return kept


def install(env: Mapping[str, str] = os.environ) -> None:
    """Put the boundaries around the product, in this process."""
    reach = _Reach(env)
    Memories._keep_last = _remembers(Memories._keep_last)  # type: ignore[method-assign]
    _around_transitions(reach)
    _around_postgres(reach)
    _around_redis(reach)
    _keep_environment()


class _Reach:
    """Called at each boundary; at the one it waits for, it sends the signal."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.moment, _, where = env.get("CRASH_AT", "").partition(":")
        self.words, _, nth = where.partition("#")
        self.nth = int(nth or 1)
        self.signal = getattr(signal, env.get("CRASH_SIGNAL", "SIGKILL"))
        self.once = Path(env["CRASH_ONCE"]) if "CRASH_ONCE" in env else None
        self.trace = Path(env["CRASH_TRACE"]) if "CRASH_TRACE" in env else None
        self.only = env.get("CRASH_ONLY", "")
        self.seen = 0
        self.lock = threading.Lock()

    def __call__(self, moment: str, name: str, about: Iterable[object] = ()) -> None:
        # A memory is written each minute too: its write is no step of a job.
        if threading.current_thread().name.startswith("memor") or _remembering.get():
            return
        with self.lock:
            if self.trace and moment == "after":
                with self.trace.open("a") as trace:
                    trace.write(f"{name}\n")
            if moment != self.moment or not name.startswith(self.words):
                return
            if self.only and self.only not in about:
                return
            self.seen += 1
            if self.seen != self.nth:
                return
            if self.once:
                try:
                    self.once.touch(exist_ok=False)
                except FileExistsError:
                    return
            if self.signal == signal.SIGSTOP:  # to this very thread, or it may run on while another takes the signal
                signal.pthread_kill(threading.get_ident(), self.signal)
            else:
                os.kill(os.getpid(), self.signal)


def _around_transitions(reach: _Reach) -> None:
    """The first statement of a transition's function is its boundary; one that changed no row has no `after`.

    What comes after a statement of a restore is after its transaction's commit.
    """
    inside: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("inside", default=None)

    def named(honest: Callable[..., Any], *names: str) -> Callable[..., Any]:
        @functools.wraps(honest)
        def wrapped(*args: Any, **words: Any) -> Any:
            token = inside.set([*reversed(names)])
            try:
                return honest(*args, **words)
            finally:
                inside.reset(token)

        return wrapped

    for function, (module, name) in CONTROL.items():
        honest = getattr(module, function)
        for place in (module, sys.modules[honest.__module__]):  # a package's own modules call each other's
            setattr(place, function, named(honest, name))
    together = named(jobs.restore_all, *_TOGETHER)
    for place in (jobs, sys.modules[jobs.restore_all.__module__]):
        place.restore_all = together  # type: ignore[attr-defined]

    @event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("PREPARE "):
            return
        if waiting := inside.get():
            reach("before", waiting[-1])
        elif _COUNTS in statement:
            reach("before", "count")

    @event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
    def after(session: Any, cursor: Any, statement: str, *__: Any) -> None:
        if statement.startswith("PREPARE "):
            return
        if waiting := inside.get():
            name = waiting.pop()
            if cursor.rowcount > 0 and name in _TOGETHER:
                session.info.setdefault("together", []).append(name)
            elif cursor.rowcount > 0:
                reach("after", name)
        elif _COUNTS in statement:
            reach("after", "count")

    @event.listens_for(sqlalchemy.Pool, "checkin")
    def committed(_: Any, record: Any) -> None:
        for name in record.info.pop("together", []):
            reach("after", name)


def _around_postgres(reach: _Reach) -> None:
    def around(honest: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(honest)
        def wrapped(*args: Any, **words: Any) -> Any:
            reach("before", name(*args), words.values())
            answer = honest(*args, **words)
            reach("after", name(*args), words.values())
            return answer

        return wrapped

    executing = around(Session.execute, lambda _, statement: statement_name(statement))
    Session.execute = executing  # type: ignore[method-assign]
    obstacles.end_sessions = around(obstacles.end_sessions, lambda *_: "end sessions")


def _around_redis(reach: _Reach) -> None:
    """A transaction is one boundary, at its EXEC, under the name of its first write."""

    def around(honest: Callable[..., Any], named: Callable[..., str | None]) -> Callable[..., Any]:
        @functools.wraps(honest)
        def wrapped(self: Any, *words: Any, **options: Any) -> Any:
            # Not the broker's commands: only backends call themselves this.
            ours = self.connection_pool.connection_kwargs.get("client_name") == "deprovisioner"
            name = named(self, words) if ours else None
            if name is None:
                return honest(self, *words, **options)
            reach("before", name)
            answer = honest(self, *words, **options)
            reach("after", name)
            return answer

        return wrapped

    single = around(redis.Redis.execute_command, lambda _, words: command_name(words))
    redis.Redis.execute_command = single  # type: ignore[method-assign]
    together = around(Pipeline.execute, lambda pipe, _: _first_write(pipe))
    Pipeline.execute = together  # type: ignore[method-assign]


def _keep_environment() -> None:
    """End the process if code changes the environment while the pool's threads run: libpq may read it at any time."""
    honest = Pool.start

    def start(self: Pool) -> None:
        os.putenv = loud  # type: ignore[assignment]
        honest(self)

    def loud(name: bytes, _: bytes) -> None:
        sys.__stderr__.write(f"{name!r} was set in the environment while threads run\n")  # type: ignore[union-attr]
        os._exit(os.EX_SOFTWARE)

    Pool.start = start  # type: ignore[method-assign]


def statement_name(statement: str) -> str:
    """Its first four words, without braces: `ALTER ROLE role NOLOGIN`."""
    return " ".join(re.sub(r"[{}]", "", statement).split()[:4])


def command_name(words: tuple[Any, ...]) -> str | None:
    """The command of a write, and what a SET is for; None for a read.

    None too where the server is named: that happens once in a server's life, and all cells share one
    (tests/worker/backends/redis/test_authority.py has the crash in it).
    """
    if SERVER_KEY in words or any(str(word).startswith(SERVER_USER) for word in words):
        return None
    said = " ".join(str(word) for word in words[:2]).split()
    name = next((w for w in (" ".join(said[:2]), said[0]) if w in _WRITES), None)
    if name == "SET":
        return "SET generation key"
    if name == "EVAL":
        return next((f"EVAL {verb}" for verb in ("UNLINK", "SET") if f"'{verb}'" in str(words[1])), None)
    return name


def _first_write(pipe: Pipeline) -> str | None:
    names = (command_name(words) for words, _ in pipe.command_stack)
    first = next((name for name in names if name), None)
    return first and f"EXEC {first}"


if __name__ == "__main__":
    install()
    cli.main(sys.argv[1:])
