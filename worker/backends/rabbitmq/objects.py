"""All vhosts and users of a server: those that bear a mark of ours, and those that do not."""

import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from outbox.errors import OutOfService
from outbox.kinds.rabbitmq import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, MarkedObject
from worker.backends.fleet import UnmarkedObject
from worker.backends.rabbitmq import identity, marks
from worker.backends.rabbitmq.session import OURS, Server, Session

_MADE = {"vhost": re.compile(r"vh_([0-9a-f]{32})"), "user": re.compile(r"usr_([0-9a-f]{32})")}


@dataclass
class _Parts:
    """What bears one mark: names with their tags."""

    vhost: dict[str, list[str]] = field(default_factory=dict)
    user: dict[str, list[str]] = field(default_factory=dict)


def objects(server: Server) -> Iterator[MarkedObject]:
    """A vhost and its user are one object; see `worker.backends.objects`. Memory grows with what bears a mark.

    Users first: one that a worker makes meanwhile, the vhost before the user, is then seen whole or as a vhost alone.
    """
    by_mark: defaultdict[tuple[str, str], _Parts] = defaultdict(_Parts)
    with server.connect() as session:
        here = identity.server_id(session, identity.nodes(session))
        for word in ("user", "vhost"):
            for one in session.each(f"{word}s", columns="name,tags"):
                for mark in set(marks.generations(marks.of(one))):
                    alone = "" if marks.is_uuid(mark) else f"{word} {one['name']}"
                    getattr(by_mark[mark, alone], word)[one["name"]] = marks.of(one)
        _must_be(session, here)
    for (mark, _), parts in by_mark.items():
        yield _object(here, mark, parts)


def _must_be(session: Session, here: str) -> None:
    if identity.server_id(session, identity.nodes(session)) != here:
        raise OutOfService("the server was replaced by another one while it was read")


def _object(here: str, mark: str, parts: _Parts) -> MarkedObject:
    vhost, user = (next(iter(found)) if len(found) == 1 else None for found in (parts.vhost, parts.user))
    against = list(_contradictions(mark, parts))
    quarantined = any(marks.note(tags) is not None for tags in (*parts.vhost.values(), *parts.user.values()))
    why = against or list(_obstacles(vhost, user, quarantined=quarantined))
    values: Json = {"vhost": vhost, "user": user, "generation": mark, "server": here}
    return MarkedObject(
        generation=mark,
        names={one.name: values[one.name] for one in KIND.fields},
        parts=(*(f"vhost {name!r}" for name in parts.vhost), *(f"user {name!r}" for name in parts.user)),
        resource_id=_resource(vhost, user),
        quarantined=quarantined,
        contradictory=bool(against),
        why="; ".join(why),
    )


def _contradictions(mark: str, parts: _Parts) -> Iterator[str]:
    if not marks.is_uuid(mark):
        yield f"the mark {mark!r} is not one as we write it"
    for word, found in (("vhosts", parts.vhost), ("users", parts.user)):
        if len(found) > 1:
            yield f"several {word} bear this mark ({', '.join(map(repr, sorted(found)[:3]))}): copies"
        if any(len(marks.generations(tags)) > 1 for tags in found.values()):
            yield f"one of its {word} bears more than one mark"


def _obstacles(vhost: str | None, user: str | None, *, quarantined: bool) -> Iterator[str]:
    """Why one whole object could not be adopted, or not as the customer left it."""
    if vhost is None:
        yield "no vhost bears its mark: its destruction was not finished or is under way, or the vhost was lost"
    elif user is None and _MADE["vhost"].fullmatch(vhost):
        yield f"the user that was made with vhost {vhost!r} is gone: its destruction was not finished"
    elif quarantined:
        yield IN_QUARANTINE


def _resource(vhost: str | None, user: str | None) -> uuid.UUID | None:
    made = (_MADE["vhost"].fullmatch(vhost or ""), _MADE["user"].fullmatch(user or ""))
    held = {found[1] for found in made if found}
    return uuid.UUID(held.pop()) if len(held) == 1 else None


def unmarked(server: Server) -> Iterator[UnmarkedObject]:
    """Vhosts without a mark, each with its user where one alone opens it; see `worker.backends.fleet.unmarked`.

    Memory grows with the permissions of the server. RabbitMQ tells neither when a vhost was made nor when it was used.
    """
    with server.connect() as session:
        here = identity.server_id(session, identity.nodes(session))
        opens: defaultdict[str, set[str]] = defaultdict(set)
        for one in session.each("permissions", columns="vhost,user"):
            opens[one["vhost"]].add(one["user"])
        for one in session.each("vhosts", columns="name,tags"):
            name = one["name"]
            if name not in server.protected and not name.startswith(OURS) and not marks.generations(marks.of(one)):
                users = opens[name] - server.protected
                yield UnmarkedObject({"vhost": name, "user": users.pop() if len(users) == 1 else None})
        _must_be(session, here)
