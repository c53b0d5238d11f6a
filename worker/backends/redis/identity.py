"""What the server shows under a manifest's names, and whether it is the manifest's namespace."""

import uuid
from typing import Any

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same
from worker.backends.redis import keys
from worker.backends.redis.session import Server, Session

OURS = "deprovisioner:"
SERVER_KEY = f"{OURS}server"
CHANNEL = f"&{OURS}gen:"


def inspect(server: Server, manifest: Json) -> Observation:
    """See the Protocol."""
    with server.connect() as session:
        return judge(session, manifest)


def judge(session: Session, manifest: Json) -> Observation:
    """Read user, generation key and server, and say: absent, the same, or a different one."""
    user = acl_user(session, manifest["user"])
    found = generation(session, manifest)
    server = server_id(session, make=False)
    evidence: Json = {
        "server": server,
        "user": None if user is None else f"{manifest['user']} {' '.join(user['flags'])} {' '.join(user['channels'])}",
        "generation_key": found,
    }
    if manifest.get("server") not in (None, server):
        why = f"{SERVER_KEY} is {server!r}, not {manifest['server']!r}: another server, or one that lost its data"
        return Different(evidence, why)
    if found not in (None, manifest["generation"]):
        return Different(evidence, f"the generation key of {manifest['prefix']!r} is {found!r}: another resource's")
    ours = user is not None and channel(manifest) in user["channels"]
    if user is not None and not ours:
        return Different(evidence, f"user {manifest['user']!r} is not the one that was made for this resource")
    if ours or found is not None:
        return Same(evidence)
    if stray := next(keys.under_prefix(session, manifest), None):
        return Different(evidence, f"keys under {manifest['prefix']!r} (such as {stray[1]!r}) bear no generation")
    return Absent(evidence)


def must_be_right_server(session: Session, manifest: Json) -> None:
    """Raises Refused on another server than the manifest's."""
    found = server_id(session, make=False)
    if manifest.get("server") not in (None, found):
        raise Refused(f"{SERVER_KEY} is {found!r}, not {manifest['server']!r}: the wrong server")


def must_not_be_protected(server: Server, manifest: Json) -> None:
    """Raises Refused for users and prefixes that are never adopted or torn down, whatever a manifest says."""
    if manifest["user"] in server.protected:
        raise Refused(f"ACL user {manifest['user']!r} is protected: it is never adopted or torn down")
    if not manifest["prefix"]:
        raise Refused("an empty prefix would match every key of the server")
    if manifest["prefix"].startswith(OURS) or OURS.startswith(manifest["prefix"]):
        raise Refused(f"prefix {manifest['prefix']!r} is deprovisioner's own")


def server_id(session: Session, *, make: bool) -> str | None:
    """The mark of this server, None when it has none; `make` gives it one first."""
    if make:
        session.set(SERVER_KEY, str(uuid.uuid4()), nx=True)
    found: Any = session.get(SERVER_KEY)
    return None if found is None else str(found)


def acl_user(session: Session, name: str) -> Json | None:
    """The ACL user of that name, None when there is none."""
    found: Any = session.acl_getuser(name)
    return found  # type: ignore[no-any-return]


def generation(session: Session, manifest: Json) -> str | None:
    """The value of the generation key, None when there is none."""
    kind: Any = session.type(keys.generation_key(manifest))
    if kind in ("string", "none"):
        found: Any = session.get(keys.generation_key(manifest))
        return None if found is None else str(found)
    return f"({kind})"  # no generation of ours is a list


def channel(manifest: Json) -> str:
    """The channel pattern that marks the ACL user with the generation."""
    return f"{CHANNEL}{manifest['generation']}"
