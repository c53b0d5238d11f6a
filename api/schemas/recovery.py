"""The state after a rewind, and the last survey."""

import datetime as dt
import uuid
from typing import Any

from pydantic import BaseModel

from outbox.actions import Rewind
from outbox.states import Decision


class RecoveryItemOut(BaseModel):
    """One thing that a survey found; `said` is why its decision could not be carried out."""

    key: str
    backend: str | None
    job_id: int | None
    resource_id: uuid.UUID | None
    detail: dict[str, Any]
    decision: Decision | None
    said: str | None


class SurveyOut(BaseModel):
    """What a survey found, by class, and what was decided.

    `backend` is the one backend that it is about, null where it is about the control database. `verdict`: why the
    places say that the database is rewound. `errors`: the backends that could not be read, and why.
    """

    id: int
    backend: str | None
    actor: str
    created_at: dt.datetime
    verdict: str | None
    surveyed: list[str]
    shared: list[str]
    errors: dict[str, str]
    counts: dict[str, int]
    samples: dict[str, list[RecoveryItemOut]]
    digest: str
    decisions: dict[str, Decision] | None
    reason: str | None
    decided_by: str | None
    begun_at: dt.datetime | None
    finished_at: dt.datetime | None
    waiting: dict[str, int]
    refused: dict[str, int]


class RecoveryOut(BaseModel):
    """Whether the control database is rewound, since when and why. Decisions are made at a shell alone."""

    rewound: bool
    since: dt.datetime | None
    reason: str | None
    announced_at: dt.datetime | None
    epoch: int | None
    survey: SurveyOut | None

    @classmethod
    def of(cls, now: Rewind) -> "RecoveryOut":
        """From what the database has."""
        survey = None if now.survey is None else SurveyOut.model_validate(vars(now.survey))
        return cls(**vars(now) | {"survey": survey})
