"""The fields that requests share, and how each is checked."""

import datetime as dt
import re
import uuid
from typing import Annotated, Any

from fastapi import Header, Path
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from outbox import labels, operations, settings
from outbox.errors import BadRequest
from outbox.rows import storable


def _storable(value: str) -> str:
    if not storable(value):
        raise ValueError("must not contain control characters")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _text(value: object) -> object:
    """Refuses numbers: pydantic would read 3600, meant as "in an hour", as a time in 1970."""
    if value is not None and not isinstance(value, str | dt.datetime):
        raise ValueError("must be a time such as 2030-01-31T12:00:00Z")
    return value


def _in_the_calendar(value: dt.datetime) -> dt.datetime:
    if not 2000 < value.year < 9000:  # in another time zone, a time at the calendar's edge is outside it
        raise ValueError("must be in a year between 2001 and 8999")
    return value.astimezone(dt.UTC)  # Python knows offsets that PostgreSQL does not


# The database's clock decides whether the time is in the future.
Time = Annotated[AwareDatetime, BeforeValidator(_text), AfterValidator(_in_the_calendar)]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable), AfterValidator(_not_blank)]


def _labels(value: object) -> dict[str, str]:
    try:
        return labels.check(value)
    except BadRequest as error:
        raise ValueError(_behind_field(error)) from error


def _label(value: str) -> str:
    try:
        labels.pair(value)
    except BadRequest as error:
        raise ValueError(_behind_field(error)) from error
    return value


def _behind_field(error: BadRequest) -> str:
    """Its words without the field's name: the answer says that itself."""
    return str(error).partition(": ")[2]


# Short texts by key, for people and filters; and one of them as a filter writes it.
Labels = Annotated[dict[str, str], BeforeValidator(_labels)]
Label = Annotated[str, Field(max_length=300, description="key:value"), AfterValidator(_label)]


def _seconds(value: object) -> object:
    return None if value is None else int(settings.span(value).total_seconds())


# A time such as `7d`, in seconds.
Span = Annotated[
    int | None,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": settings.SPAN}, {"type": "null"}]}),
]

# No resource has this version.
_NO_VERSION = 0


def _version(value: object) -> object:
    """The version that an entity tag says; a weak one, or one of another service, is never a resource's."""
    tag = re.fullmatch(r'(W/)?"([\x21\x23-\x7e]*)"', str(value).strip())
    if value == "*":
        return None
    if tag is None:
        raise ValueError('must be the ETag of an answer, such as "3", or *')
    return int(tag[2]) if not tag[1] and re.fullmatch("[1-9][0-9]{0,17}", tag[2]) else _NO_VERSION


IfMatch = Annotated[
    int | None,
    BeforeValidator(_version),
    WithJsonSchema({"type": "string"}),
    Header(description="the ETag of the resource as you read it; 412 when it has changed since"),
]
IdempotencyKey = Annotated[
    Word | None, Header(description="the same key again is the same request: it is answered, and not done again")
]
ResourceId = Annotated[uuid.UUID, Path(description="the resource's UUID")]


def _digits(value: object) -> object:
    """Refuses what else reads as a number: `1_0`, `+1`, `01`, `1.0`."""
    if not re.fullmatch("[1-9][0-9]*", str(value)):
        raise ValueError("must be a whole number in digits, from 1 on")
    return value


Number = Annotated[
    int, BeforeValidator(_digits), Path(ge=1, le=2**63 - 1, description="as listings and answers have it")
]
Cursor = Annotated[str | None, Field(max_length=500, description="`next_cursor` of the page before this one")]
Limit = Annotated[int, Field(ge=1, le=200, description="at most so many items on the page")]
# A hundred years: PostgreSQL's calendar can subtract that from now.
MAX_AGE_SECONDS = 100 * 366 * 86_400


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reason(_In):
    """Why; stored for good."""

    reason: Word


Digest = Annotated[
    str,
    Field(pattern=f"^{operations.DIGEST}$", description="`digest` of the dry run; 409 when the set has changed since"),
]


Credentials = dict[str, Any]
