"""The memory of the control database that a place outside keeps. It shows later that the database went back in time.

A place is a backend, or the broker. It keeps one memory an installation: the highest event that a worker saw committed,
and notes of the last events that a recovery must know of. `offered` is the rule by which all places keep them.
"""

import datetime as dt
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from outbox import foreign
from outbox.rows import Json

NOTE_DIGITS = 16  # of an event's hash, in hex, that a note has
NOTES = 500  # the newest; about as many acts as a busy day brings between a backup and its restore
BYTES = 64_000  # of a memory as JSON; the oldest notes are dropped first
LONGEST = 4 * BYTES  # characters of a place's record that are read; a longer one is none of ours
_DETAIL = 1_000  # characters of a note's detail as JSON
_BIGGEST = 2**63 - 1  # PostgreSQL's bigint
_HEX = re.compile(r"[0-9a-f]{0,64}")
_WORD = re.compile(r"[a-z_]{1,40}")


Moment = tuple[int, int]  # an epoch and an event


@dataclass(frozen=True)
class Note:
    """An event that a recovery must know of. `hash`: the first 16 digits of the event's; `what`: the event's word."""

    event: int
    hash: str
    at: dt.datetime
    what: str
    resource: uuid.UUID | None
    detail: Json

    def as_json(self) -> Json:
        """As `read` takes it; a detail that is too long is cut."""
        detail = foreign.evidence(self.detail)
        if len(written := json.dumps(detail)) > _DETAIL:
            detail = {"cut": foreign.line(written, _DETAIL // 2)}
        return {
            "event": self.event,
            "hash": self.hash,
            "at": self.at.astimezone(dt.UTC).isoformat(),
            "what": self.what,
            "resource": None if self.resource is None else str(self.resource),
            "detail": detail,
        }

    @classmethod
    def read(cls, written: Any) -> "Note":
        """From foreign JSON. Raises ValueError where it is no note."""
        return cls(
            event=_field(written, "event", _number),
            hash=_field(written, "hash", lambda value: _matching(_HEX, value)),
            at=_field(written, "at", _moment),
            what=_field(written, "what", lambda value: _matching(_WORD, value)),
            resource=_field(written, "resource", lambda value: None if value is None else uuid.UUID(value)),
            detail=_field(written, "detail", _bounded),
        )


@dataclass(frozen=True)
class Memory:
    """What a place keeps. `event` is the highest that was seen committed, `hash` its own; 0 and "" before the first.

    `epoch` is raised by each recovery. `still`: a rewind was noticed or a restore announced, so that nothing may be
    destroyed on the word of this epoch. `notes`: oldest first; None, in what is offered, keeps those that are there.
    `lagging`, never written: an earlier event that a part of the place has, which went back in time without the rest.
    """

    installation: uuid.UUID
    epoch: int
    event: int
    hash: str
    still: bool = False
    notes: tuple[Note, ...] | None = None
    lagging: int | None = None

    @property
    def least(self) -> "Moment":
        """The epoch and the event that every part of the place has at least."""
        return self.epoch, self.event if self.lagging is None else self.lagging

    @property
    def noted(self) -> int:
        """The event of the newest note, 0 without any."""
        return self.notes[-1].event if self.notes else 0

    def as_json(self) -> Json:
        """As `read` takes it: at most NOTES notes and BYTES bytes, of the notes the newest."""
        made: Json = {
            "installation": str(self.installation),
            "epoch": self.epoch,
            "event": self.event,
            "hash": self.hash,
            "still": self.still,
        }
        return made | {"notes": None if self.notes is None else _newest(self.notes, BYTES - len(json.dumps(made)))}

    @classmethod
    def read(cls, written: Any) -> "Memory":
        """From foreign JSON, text or not. Raises ValueError, in words that can be shown, where it is no memory."""
        if isinstance(written, str | bytes):
            written = parsed(written)
        return cls(
            installation=_field(written, "installation", uuid.UUID),
            epoch=_field(written, "epoch", _number),
            event=_field(written, "event", _number),
            hash=_field(written, "hash", lambda value: _matching(_HEX, value)),
            still=_field(written, "still", _truth),
            notes=_field(written, "notes", _notes),
        )


def offered(there: Memory | None, new: Memory, least: Moment | None = None) -> tuple[Memory | None, bool]:
    """What a place has after a memory was offered to it, and whether that one was kept.

    Not kept: one of an earlier epoch; in the same epoch, one of an earlier event, or of the same event with another
    hash, or one that is not `still` where the place is. `still` of the same epoch stays, and is put on what stays.
    Newer notes are kept even where a later event stays: another worker's event must not keep them out for ever.

    `least`: what the place had before. One that has less went back in time: it is left as it is, for all to see.
    """
    if least is not None and not new.still and (there.least if there else (0, 0)) < least:
        return there, False
    if there is None:
        return replace(new, notes=new.notes or ()), True
    if new.epoch < there.epoch:
        return there, False
    same = new.epoch == there.epoch
    earlier = same and new.event < there.event
    forked = same and new.event == there.event and new.hash != there.hash
    silenced = same and there.still and not new.still
    if not (earlier or forked or silenced):
        return replace(new, notes=there.notes if new.notes is None else new.notes), True
    late_notes = earlier and not (there.still or new.still) and new.notes is not None and new.noted >= there.noted
    return replace(there, still=there.still or new.still, notes=new.notes if late_notes else there.notes), False


def nothing(installation: uuid.UUID) -> Memory:
    """What `remember` answers for a place that has nothing where it had something."""
    return Memory(installation, 0, 0, "", notes=())


def parsed(text: str | bytes) -> Any:
    """What a place's record says as JSON. Raises ValueError where it is none."""
    if len(text) > LONGEST:
        raise ValueError(f"it is {len(text)} characters long, and a memory has {BYTES} at most")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"it is no JSON: {foreign.line(repr(text[:100]), 100)}") from None


def _newest(notes: tuple[Note, ...], room: int) -> list[Json]:
    """The newest notes that fit, oldest first."""
    kept: list[Json] = []
    room -= len('"notes": [], ')
    for note in reversed(notes[-NOTES:]):
        made = note.as_json()
        room -= len(json.dumps(made)) + 2
        if room < 0:
            break
        kept.append(made)
    return kept[::-1]


def _field(written: Any, name: str, read: Callable[[Any], Any]) -> Any:
    """A field's value. Raises ValueError that says which field is wrong."""
    if not isinstance(written, dict):
        raise ValueError(f"it is no JSON object: {foreign.line(repr(written), 100)}")
    if name not in written:
        raise ValueError(f"it has no `{name}`")
    try:
        return read(written[name])
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        shown = foreign.line(repr(written[name]), 100)
        raise ValueError(f"its `{name}` is wrong: {error if name == 'notes' else shown}") from None


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _BIGGEST:
        raise ValueError
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if not pattern.fullmatch(value):
        raise ValueError
    return str(value)


def _moment(value: Any) -> dt.datetime:
    moment = dt.datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(dt.UTC)


def _bounded(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError
    bounded: Json = foreign.evidence(value)
    return bounded


def _notes(value: Any) -> tuple[Note, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError("no list")
    return tuple(Note.read(one) for one in value[-NOTES:])
