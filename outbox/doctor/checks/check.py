"""One invariant as a query, and what an operator should do when it does not hold."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One invariant. `subject` is what the ids are ids of. A `warning` breaks no promise, but needs an operator."""

    code: str
    subject: str
    sql: str = field(repr=False)
    means: str
    do: str
    severity: Literal["broken", "warning"] = "broken"


REPORT = "keep the rows as they are and report it; `deprovisioner jobs show ID` shows the job's events"
BY_HAND = "the rows were changed outside the product (by a person, or a restore from a backup): find out who, then "
