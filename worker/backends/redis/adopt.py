"""Adopt an ACL user that exists with its prefix, tell beforehand what would be refused, and let go of one again."""

import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial

from outbox.errors import Refused, Transient
from outbox.kinds.redis import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Finding
from worker.backends.redis import changes, identity, keys, rights
from worker.backends.redis.quarantine import SHUT
from worker.backends.redis.session import Server, Session


def adopt(server: Server, manifest: Json, generation: uuid.UUID) -> Json:
    """Mark user and prefix with the generation; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    _must_end_a_name(manifest)
    with server.connect() as session:
        identity.must_keep_promises(session)
        full = KIND.manifest(
            user=manifest["user"],
            prefix=manifest["prefix"],
            generation=str(generation),
            server=manifest.get("server") or identity.identify(session),
        )
        identity.must_be_right_server(session, full)
        for check in _checks(session, full):
            check()
        planted = session.set(keys.generation_key(full), full["generation"], nx=True)
        if not planted and keys.generation(session, full) != full["generation"]:
            raise _taken(full)
        # Marked before the others are read: of two adoptions that race, at least one sees the other's mark.
        session.execute_command("ACL", "SETUSER", full["user"], identity.channel(full))
        if overlap := _overlap(session, full):
            if planted:
                _let_go(session, full)
            raise Refused(_overlaps(full, overlap))
        session.save_acl()
    return full


def adoptable(server: Server, manifest: Json) -> list[Finding]:
    """See `worker.backends.fleet`; the same checks as an adoption's, each of them."""
    found: list[Finding] = []
    with server.connect() as session:
        named = next(iter(identity.server_ids(session)), None)  # a server without a name gets one by an adoption
        full = KIND.manifest(
            user=manifest["user"],
            prefix=manifest["prefix"],
            generation=manifest.get("generation") or str(uuid.uuid4()),
            server=manifest.get("server") or named,
        )
        before: tuple[Callable[[], None], ...] = (
            partial(identity.must_not_be_protected, server, full),
            partial(_must_end_a_name, full),
            partial(identity.must_keep_promises, session),
            partial(identity.must_be_right_server, session, full),
        )
        checks: list[Callable[[], None]] = [*before, *_checks(session, full), partial(_must_be_free, session, full)]
        for check in checks:
            try:
                check()
            except rights.Beyond as error:
                found.append(Finding("right_missing", error.what, error.mend))
            except Refused as error:
                code = "not_there" if isinstance(error, _NotThere) else "refused"
                found.append(Finding(code, str(error), ""))
    return found


def pinned(server: Server, manifest: Json) -> Json:
    """See `worker.backends.fleet`; an ACL user has no number, so it is the server alone."""
    with server.connect() as session:
        found = identity.server_ids(session)
    return manifest | {"server": manifest.get("server") or (found[0] if len(found) == 1 else None)}


class _NotThere(Refused):
    """The user does not exist."""


def _must_end_a_name(manifest: Json) -> None:
    if not manifest["prefix"].endswith(":"):
        raise Refused(f"prefix {manifest['prefix']!r} must end with ':', or it would match its neighbours' keys")


def _taken(full: Json) -> Refused:
    return Refused(f"user {full['user']!r} or prefix {full['prefix']!r} belongs to another resource already")


def _overlaps(full: Json, other: str) -> str:
    return f"prefix {full['prefix']!r} lies inside another resource's or around it: {other!r}"


def _checks(session: Session, full: Json) -> Iterator[Callable[[], None]]:
    """What must be true of the user; each raises Refused."""
    user = identity.acl_user(session, full["user"])
    yield partial(_must_be_there, user, full)
    if user is not None:
        yield partial(_must_be_another, session, full)
        yield partial(_must_bear_no_other_mark, session, user, full)
        if _other_mark(user, full):
            return  # the statement that limits the user would take another resource's mark off
        yield partial(_must_not_be_in_quarantine, user, full)
        yield partial(rights.must_stay_inside, session, full, user)


def _must_be_there(user: Json | None, full: Json) -> None:
    if user is None:
        raise _NotThere(f"there is no ACL user {full['user']!r} to adopt")


def _must_be_another(session: Session, full: Json) -> None:
    if full["user"] == session.acl_whoami():
        raise Refused(f"ACL user {full['user']!r} is the one that deprovisioner itself works with")


def _must_bear_no_other_mark(session: Session, user: Json, full: Json) -> None:
    if _other_mark(user, full):
        raise _taken(full)
    if _is_uuid(older := keys.older_generation(session, full)) and older != full["generation"]:
        raise _taken(full)


def _other_mark(user: Json, full: Json) -> bool:
    return any(c.startswith(identity.CHANNEL) and c != identity.channel(full) for c in user["channels"])


def _must_not_be_in_quarantine(user: Json, full: Json) -> None:
    if SHUT in user["channels"]:
        raise Refused(f"ACL user {full['user']!r} cannot be adopted: {IN_QUARANTINE}")


def _must_be_free(session: Session, full: Json) -> None:
    """Of the prefix, for who only asks: an adoption plants its key instead."""
    if keys.generation(session, full) not in (None, full["generation"]):
        raise _taken(full)
    if overlap := _overlap(session, full):
        raise Refused(_overlaps(full, overlap))


def _overlap(session: Session, manifest: Json) -> str | None:
    """The prefix of another resource inside ours or around it, by its user's mark or its generation key."""
    prefix = manifest["prefix"]
    for end in (end for end, letter in enumerate(prefix[:-1]) if letter == ":"):
        if session.type(keys.generation_key({"prefix": prefix[: end + 1]})) != "none":
            return str(prefix[: end + 1])
    # A resource that an older version made has no such key, but its user has a mark.
    for name, rules in identity.marked_users(session, identity.CHANNEL):
        if identity.channel(manifest) in rules:
            continue
        reached = [rights.beginning(rule) for rule in rules if rule[:1] in "~%"]
        if inside := next((one for one in reached if one and one.startswith(prefix)), None):
            return inside
        if any(one and prefix.startswith(one) for one in reached):
            return f"that of ACL user {name}"
    # What lost its user has its key alone, and has had it for long: these keys are read once a minute.
    known = session.server.kept(session, "prefixes", _marked_prefixes)
    place = bisect_left(known, prefix)
    for other in known[place : place + 2]:
        if other != prefix and other.startswith(prefix) and session.type(f"{keys.MARKS}{other}") != "none":
            return str(other)
    return None


def _marked_prefixes(session: Session) -> list[str]:
    """The prefixes that have a generation key, in order; it reads the names of all keys of the server."""
    return sorted(str(key).removeprefix(keys.MARKS) for key in session.scan_iter(match=f"{keys.MARKS}*", count=1000))


def _is_uuid(value: str | None) -> bool:
    try:
        return value is not None and bool(uuid.UUID(value))
    except ValueError:
        return False


def unmark(server: Server, manifest: Json) -> Json:
    """Take the channel off the user, and the generation key away; see `worker.backends.fleet`."""
    with server.connect() as session:
        identity.must_be_right_server(session, manifest)
        user = identity.acl_user(session, manifest["user"])
        if user is not None and SHUT in user["channels"]:
            raise Refused(f"ACL user {manifest['user']!r} is in quarantine: restore it before you release it")
        if not identity.is_marked(user, manifest):
            if bearers := identity.users_with(session, identity.channel(manifest)):
                raise Refused(f"user {bearers[0]!r} bears the mark of this resource: it was renamed or is a copy")
            if keys.generation(session, manifest) == manifest["generation"]:
                keys.unlink_generation(session, manifest)
                return {"unmarked": [f"prefix {manifest['prefix']}"]}
            return {"unmarked": []}
        _let_go(session, manifest)
    return {"unmarked": [f"user {manifest['user']}", f"prefix {manifest['prefix']}"]}


def _let_go(session: Session, manifest: Json) -> None:
    """Give the user its channels without the mark; then the generation key goes, by which a repeated call goes on."""
    user = identity.acl_user(session, manifest["user"])
    if user is None:
        raise Transient(f"user {manifest['user']!r} was removed meanwhile; trying again")
    others = [channel for channel in user["channels"] if channel != identity.channel(manifest)]
    keys.plant(session, manifest)  # a change of the user is fenced by this key, which may have been evicted
    changes.if_still_ours(session, manifest, ("ACL", "SETUSER", manifest["user"], "resetchannels", *others))
    session.save_acl()
    keys.unlink_generation(session, manifest)
