"""How long a running job repeats a call in its own process, before it leaves the job to the next attempt."""

from typing import Any

from tenacity import Retrying, stop_after_delay, wait_random_exponential
from tenacity.retry import retry_base

# A control database that restarts is back within this. After it the lease has passed, and a sweep takes the job over.
_GIVE_UP = stop_after_delay(60)
_WAIT = wait_random_exponential(multiplier=0.1, max=2)


def retrying(when: retry_base, **more: Any) -> Retrying:
    """Repeat a call while `when` holds, for a minute; then raise its last error."""
    return Retrying(retry=when, wait=_WAIT, stop=_GIVE_UP, reraise=True, **more)
