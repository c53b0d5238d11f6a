"""One invariant as a query, and what to do where it does not hold."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One invariant. `subject` says what the ids are; a `warning` breaks no promise, but wants a look."""

    code: str
    subject: str
    sql: str = field(repr=False)
    means: str
    do: str
    severity: Literal["broken", "warning"] = "broken"


REPORT = "keep the rows as they are and report it; `deprovisioner jobs show ID` tells the job's story"
BY_HAND = "something wrote past the product (a person, a restore from a backup?); find out who, then "
