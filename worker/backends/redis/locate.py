"""Where a manifest's namespace is on a server that moved: by the marks of user and key alone."""

import uuid

from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same
from worker.backends.redis import identity, keys
from worker.backends.redis.session import Server


def locate(server: Server, manifest: Json) -> Observation:
    """See `worker.backends.fleet.locate`. Same only where user and generation key are both there, once."""
    if not manifest.get("generation"):
        return Different({}, "its manifest has no generation, by which alone it could be known again")
    with server.connect() as session:
        servers = identity.server_ids(session)
        found = identity.judge(session, manifest | {"server": None})
        user, key = identity.acl_user(session, manifest["user"]), keys.generation(session, manifest)
        bearers = identity.users_with(session, identity.channel(manifest))
        session.must_be_primary()  # until now: a replica has the keys, and not the users
    if len(servers) != 1:
        return Different(found.seen, _unnamed(servers))
    here = {"manifest": manifest | {"server": servers[0]}}
    match found:
        case Absent(seen=seen):
            return Absent(seen | here)
        case Different():
            return found
    if not identity.is_marked(user, manifest) or key != manifest["generation"]:
        missing = f"the generation key of {manifest['prefix']!r}" if user else f"user {manifest['user']!r}"
        return Different(found.seen, f"{missing} is missing: bring the keys and the ACL users over, both", marked=True)
    if others := sorted(set(bearers) - {manifest["user"]}):
        return Different(found.seen, f"user {others[0]!r} bears the same mark: a copy; find its owner", marked=True)
    return Same(found.seen | here)


def _unnamed(servers: list[str]) -> str:
    if servers:
        return (
            f"the server has the identities {' and '.join(servers)}: an aclfile was copied; remove the user "
            f"{identity.SERVER_USER}… that was another server's"
        )
    name = f"{identity.SERVER_USER}{uuid.uuid4()}"
    return f"the server has no identity yet: give it one with `ACL SETUSER {name} reset` and `ACL SAVE`"
