"""What the server shows under a manifest's names, and whether it is the manifest's namespace."""

import uuid
from collections.abc import Iterator
from typing import Any

from redis import exceptions

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same
from worker.backends.redis import keys
from worker.backends.redis.session import Server, Session

OURS = "deprovisioner:"
SERVER_USER = f"{OURS}server:"
# Where older versions kept the server's identity. It is replicated, flushed and evicted as every key is.
SERVER_KEY = f"{OURS}server"
CHANNEL = f"&{OURS}gen:"


def inspect(server: Server, manifest: Json) -> Observation:
    """See the Protocol."""
    with server.connect() as session:
        return judge(session, manifest)


def judge(session: Session, manifest: Json) -> Observation:
    """Read server, user, marks and generation key, and say: absent, the same, or a different one.

    Absent means that nothing of the manifest is there: no user of its name, no user with its mark, no key.
    """
    found = keys.generation(session, manifest)
    servers = server_ids(session)
    user = acl_user(session, manifest["user"])  # last: a destructive command may follow, which only knows the name
    ours = is_marked(user, manifest)
    if found is None and user is None:  # an older version's worker died between the removal of user and key
        older = keys.older_generation(session, manifest)
        found = older if older == manifest["generation"] else None
    evidence: Json = {
        "server": ", ".join(servers) or None,
        "user": None if user is None else f"{manifest['user']} {' '.join(user['flags'])} {' '.join(user['channels'])}",
        "generation_key": found,
    }
    bearers = [] if ours else users_with(session, channel(manifest))
    marked = ours or found == manifest["generation"] or bool(bearers)
    if why := wrong_server(session, manifest, servers, ours=ours):
        left = user is not None or found is not None or bool(bearers)
        left = left or next(keys.under_prefix(session, manifest), None) is not None
        what = "something bears its names" if left else "nothing of this resource is"
        return Different(evidence | {"nothing_here": not left}, f"{why}; {what} on this server", marked)
    if found not in (None, manifest["generation"]):
        why = f"the generation key of {manifest['prefix']!r} is {found!r}: another resource's"
        return Different(evidence, why, marked)
    if user is not None and not ours:
        why = f"user {manifest['user']!r} is not the one that was made for this resource"
        return Different(evidence, why, marked)
    if user is None and bearers:
        why = f"user {bearers[0]!r} bears the mark of this resource: its user was renamed or copied; find its owner"
        return Different(evidence | {"marked": bearers}, why, marked)
    if ours or found is not None:
        return Same(evidence)
    if stray := next(keys.under_prefix(session, manifest), None):
        return Different(evidence, f"keys under {manifest['prefix']!r} (such as {stray[1]!r}) bear no generation")
    session.must_be_primary()  # until now: what a server did not show while it became a replica is not absent
    return Absent(evidence)


def wrong_server(session: Session, manifest: Json, servers: list[str], *, ours: bool) -> str | None:
    """Why this is not the manifest's server, None when it is. `ours`: the manifest's own user is there.

    Without an identity of its own, a server of an older version is known by that version's key. But a promoted
    replica has the key too; only a user of ours shows that this is not one.
    """
    if manifest.get("server") is None or servers == [manifest["server"]]:
        return None
    if len(servers) > 1:
        return (
            f"the server has the identities {' and '.join(servers)}: an aclfile was copied; find out which of them is "
            "this server's, and only then remove the other's user"
        )
    if servers:
        return f"the server is {servers[0]!r}, not {manifest['server']!r}: the wrong server, or one that lost its users"
    if ours and session.get(SERVER_KEY) == manifest["server"]:
        return None
    return (
        f"the server has no ACL user {SERVER_USER}{manifest['server']}: another server, a promoted replica (users are "
        "not replicated: those of the old primary are still there), or one that lost its users"
    )


def must_be_right_server(session: Session, manifest: Json) -> None:
    """Raises Refused on another server than the manifest's."""
    if why := wrong_server(session, manifest, server_ids(session), ours=False):
        raise Refused(why)


def must_keep_promises(session: Session) -> None:
    """Raises Refused on a server whose teardowns could not be trusted: nothing is made or adopted there."""
    if session.info("cluster").get("cluster_enabled"):
        raise Refused("the server is part of a Redis Cluster: a teardown cannot reach all slots in one script")
    if not session.server.volatile_users and not session.keeps_users():
        raise Refused(
            "the server does not keep its ACL users over a restart, or does not let this be seen: configure an aclfile "
            "and allow ACL SAVE or CONFIG GET, or set `volatile_users = true` in the backends file where this is meant"
        )


def must_not_be_protected(server: Server, manifest: Json) -> None:
    """Raises Refused for users and prefixes that are never adopted or torn down, whatever a manifest says."""
    if manifest["user"] in server.protected:
        raise Refused(f"ACL user {manifest['user']!r} is protected: it is never adopted or torn down")
    if not manifest["prefix"]:
        raise Refused("an empty prefix would match every key of the server")
    if manifest["prefix"].startswith(OURS) or OURS.startswith(manifest["prefix"]):
        raise Refused(f"prefix {manifest['prefix']!r} is deprovisioner's own")


def server_ids(session: Session) -> list[str]:
    """What identifies this server: the rest of the name of an ACL user that may do nothing.

    Users are of one node: they are not replicated, evicted or flushed, and live as long as the customers' do.
    """
    users: Any = session.acl_users()
    return sorted(name.removeprefix(SERVER_USER) for name in users if name.startswith(SERVER_USER))


def identify(session: Session) -> str:
    """The identity of this server, made when it has none. Raises Refused when it has two, Transient after a race.

    A server of an older version takes over that version's key, if a user of ours shows that it is no promoted replica.
    """
    with session.pipeline() as pipe:
        pipe.watch(SERVER_KEY)  # two that race both write it: one of them is turned away
        if len(found := server_ids(session)) > 1:
            raise Refused(f"the server has the identities {' and '.join(found)}: an aclfile was copied")
        if found:
            return found[0]
        older: Any = session.get(SERVER_KEY)
        new = str(older) if older is not None and users_with(session, CHANNEL) else str(uuid.uuid4())
        pipe.multi()
        pipe.set(SERVER_KEY, new)
        pipe.execute_command("ACL", "SETUSER", f"{SERVER_USER}{new}", "reset")
        try:
            pipe.execute()
        except exceptions.WatchError as error:
            raise Transient("another worker names the server at this moment; trying again") from error
    session.save_acl()
    return new


def users_with(session: Session, beginning: str) -> list[str]:
    """The names of all users with a channel pattern that begins so."""
    return [name for name, _ in marked_users(session, beginning)]


def marked_users(session: Session, beginning: str) -> list[tuple[str, list[str]]]:
    """All users with a channel pattern that begins so, each with its patterns of keys and channels."""
    lines: Any = session.acl_list()
    # A user has some sixty rules: of ten thousand users, those of the others are not taken apart.
    found = (line.split() for line in lines if beginning in line)
    users = ((name, list(patterns(rules))) for _, name, *rules in found)
    return [(name, rules) for name, rules in users if any(rule.startswith(beginning) for rule in rules)]


def patterns(rules: list[str]) -> Iterator[str]:
    """The patterns of keys and channels among a user's rules."""
    for rule in rules:
        word = rule.removeprefix("(").removesuffix(")")  # those of a selector stand in parentheses
        if word[:1] in ("~", "%", "&"):
            yield word


def acl_user(session: Session, name: str) -> Json | None:
    """The ACL user of that name, None when there is none."""
    found: Any = session.execute_command("ACL", "GETUSER", name)
    return None if found is None else read_user(found)


def read_user(answer: Json) -> Json:
    """An answer of ACL GETUSER with its patterns as lists; redis-py's own reading loses the order of the commands."""
    return answer | {"keys": answer["keys"].split(), "channels": answer["channels"].split()}


def is_marked(user: Json | None, manifest: Json) -> bool:
    """Whether this is the user that was made or adopted for the resource: only an administrator can change its mark."""
    return user is not None and channel(manifest) in user["channels"]


def channel(manifest: Json) -> str:
    """The channel pattern that marks the ACL user with the generation."""
    return f"{CHANNEL}{manifest['generation']}"
