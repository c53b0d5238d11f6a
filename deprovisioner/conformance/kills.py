"""A process that does one thing with a backend, and kills itself before or after the n-th call to the server."""

import importlib
import os
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

from deprovisioner.conformance.subject import Subject
from deprovisioner.sdk import Backend

Moment = Literal["before", "after"]
# Seconds. It only keeps a test from hanging.
PATIENCE = 120.0
_FAILED = "!"


def run(subject: Subject, act: Callable[[Backend], object], nth: int = 0, moment: Moment = "before") -> list[str]:
    """The calls that `act` began in a forked process, by name; killed at the `nth`, from 1 on; at none for 0.

    Where it made fewer calls, it came to its end. Raises AssertionError with what it said where it failed, or hangs.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of others: the child uses none of them
        child = os.fork()
    if child == 0:
        os.close(reading)
        _be(subject, act, nth, moment, writing)
    os.close(writing)
    try:
        said = _all_of(reading)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    said, _, failed = said.partition(_FAILED)
    assert not failed, f"the verb failed, and was not killed:\n{failed}"
    calls = said.splitlines()
    assert os.WIFSIGNALED(status) == (0 < nth <= len(calls)), f"call {nth} of {len(calls)}: it ended with {status}"
    return calls


def _all_of(reading: int) -> str:
    said, deadline = b"", time.monotonic() + PATIENCE
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the process came to no end within {PATIENCE:.0f} s; its calls: {said.decode()}"
        if not (piece := os.read(reading, 65_536)):
            return said.decode(errors="replace")
        said += piece


def _be(subject: Subject, act: Callable[[Backend], object], nth: int, moment: Moment, writing: int) -> None:
    """Be the process: nothing of the parent's test may run here, so it ends here in any case."""
    try:
        counted = 0
        lock = threading.Lock()

        def around(name: str, honest: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(honest)
            def wrapped(*args: Any, **words: Any) -> Any:
                nonlocal counted
                with lock:
                    counted += 1
                    mine = counted
                    os.write(writing, f"{name}\n".encode())
                if mine == nth and moment == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    return honest(*args, **words)
                finally:  # after an error too: the server may have done it all the same
                    if mine == nth:
                        os.kill(os.getpid(), signal.SIGKILL)

            return wrapped

        for dotted in subject.calls:
            owner, name = _owner(dotted)
            setattr(owner, name, around(dotted.rpartition(".")[2], getattr(owner, name)))
        act(subject.backend())
        os._exit(0)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent says it
        os.write(writing, f"{_FAILED}{traceback.format_exc()}".encode(errors="replace"))
        os._exit(1)


def _owner(dotted: str) -> tuple[Any, str]:
    """The module or class that a dotted name's last part is an attribute of."""
    parts = dotted.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:-1]:
            owner = getattr(owner, part)
        getattr(owner, parts[-1])
        return owner, parts[-1]
    raise AttributeError(f"`calls` names {dotted!r}, which is nowhere")
