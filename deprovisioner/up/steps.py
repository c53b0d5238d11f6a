"""What `up` does step by step: it says what and how long it took, and a signal ends it between two steps."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

WATCH_SECONDS = 0.2


class Stop(BaseException):
    """Raised between two steps and while waiting, once a signal has set `asked`; passes code that only catches errors.

    The handler raises nothing: an exception could arrive anywhere, inside the release of a lock too.
    """

    asked = False


def ask_to_stop(*_: object) -> None:
    """A signal's handler."""
    Stop.asked = True


def stop_if_asked() -> None:
    """Raise Stop once a signal has come."""
    if Stop.asked:
        raise Stop


def output_of(command: list[str], env: Mapping[str, str]) -> tuple[int, str, str]:
    """A command's exit status, stdout and stderr; a signal to `up` ends it."""
    with subprocess.Popen(  # noqa: S603 - our own command, no shell
        command, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    stdout, stderr = process.communicate(timeout=WATCH_SECONDS)
                    return process.returncode, stdout, stderr
                stop_if_asked()
        except BaseException:
            process.kill()
            raise


def say(line: str) -> None:
    """Print a line for the person who started it."""
    print(f"up: {line}", flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    stop_if_asked()
    began = time.monotonic()
    print(f"up: {what} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" ready in {time.monotonic() - began:.1f} s", flush=True)
