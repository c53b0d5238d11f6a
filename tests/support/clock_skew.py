"""The product's own command on a host whose clock is wrong: SKEW_SECONDS ahead, or behind when negative.

    SKEW_SECONDS=86400 python -m tests.support.clock_skew worker

`time.time` and `datetime.now` are put off before anything of the product is imported.
"""

import datetime
import os
import sys
import time

SKEW = float(os.environ.get("SKEW_SECONDS", "0"))


def skew() -> None:
    """From here on, this process's clock is wrong."""
    honest, honest_ns = time.time, time.time_ns
    time.time = lambda: honest() + SKEW  # type: ignore[assignment]
    time.time_ns = lambda: honest_ns() + int(SKEW * 10**9)  # type: ignore[assignment]
    real = datetime.datetime

    class _Class(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, real)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, real)

    class Skewed(real, metaclass=_Class):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.now(tz) + datetime.timedelta(seconds=SKEW)

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return real.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=SKEW)

    datetime.datetime = Skewed  # type: ignore[misc]


if __name__ == "__main__":
    skew()
    from deprovisioner import cli

    cli.main(sys.argv[1:])
