"""The tags of a vhost or a user that are ours: its mark, and what `quarantine` found.

Only an administrator can change tags. The server keeps each different tag as an atom until it restarts, and has room
for five million: vhost and user of a resource share theirs, and no other tag is made of anything that goes on growing.
"""

import uuid
from collections.abc import Iterable

from outbox.rows import Json
from worker.backends.rabbitmq.session import OURS, Session

GENERATION = f"{OURS}gen:"
SHUT = f"{OURS}shut:"
TURN = f"{OURS}turn:"


def of(record: Json | None) -> list[str]:
    """The tags of a vhost or user, as the server has them; a record of an older version has none."""
    found = record.get("tags") if record else None
    return [str(tag) for tag in found] if isinstance(found, list) else []


def mark(generation: str) -> str:
    """The tag that says which resource's it is."""
    return f"{GENERATION}{generation}"


def generations(tags: Iterable[str]) -> list[str]:
    """Whose it is, as its tags say it."""
    return [tag.removeprefix(GENERATION) for tag in tags if tag.startswith(GENERATION)]


def note(tags: Iterable[str]) -> str | None:
    """What `quarantine` found and `release` brings back; None where there is no quarantine."""
    return next((tag.removeprefix(SHUT) for tag in tags if tag.startswith(SHUT)), None)


def turn(tags: Iterable[str]) -> str | None:
    """Which worker's turn it is to change the object; see `turns`."""
    return next((tag for tag in tags if tag.startswith(TURN)), None)


def without(tags: Iterable[str], *beginnings: str) -> list[str]:
    """The other tags."""
    return [tag for tag in tags if not tag.startswith(beginnings)]


def shown(tags: Iterable[str]) -> str:
    """The tags that are ours, for evidence, but for the turn."""
    return " ".join(tag for tag in tags if tag.startswith((GENERATION, SHUT)))[:300]


def is_uuid(text: str) -> bool:
    """Whether a generation is written as we write it."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def write(session: Session, word: str, record: Json, tags: list[str], **more: str) -> None:
    """Replace the tags of a vhost or user that was just read; description, or password, are kept as they were."""
    if word == "vhost":
        description = record.get("description")
        session.put(
            "vhosts", record["name"], description=description if isinstance(description, str) else "", tags=tags
        )
    else:
        kept = {key: record[key] for key in ("password_hash", "hashing_algorithm")}
        session.put("users", record["name"], tags=tags, **kept | more)
