"""Plan, provision and adopt an ACL user with its prefix."""

import hashlib
import secrets
import uuid

from redis import SSLConnection

from outbox.errors import Refused
from outbox.kinds.redis import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Different, Plan
from worker.backends.redis import commands, endpoint, identity, keys, rights
from worker.backends.redis.endpoint import Public
from worker.backends.redis.quarantine import SHUT
from worker.backends.redis.session import Server, Session


def plan(server: Server, public: Public, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
    """Names from the resource's UUID, whole; see the Protocol."""
    with server.connect() as session:
        identity.must_keep_promises(session)
        manifest = KIND.manifest(
            user=f"usr_{resource_id.hex}",
            prefix=f"{resource_id}:",
            generation=str(generation),
            server=identity.identify(session),
        )
        pool = session.connection_pool
    credentials = endpoint.credentials(
        pool.connection_kwargs,
        public,
        tls=issubclass(pool.connection_class, SSLConnection),
        user=manifest["user"],
        password=secrets.token_urlsafe(24),
        prefix=manifest["prefix"],
    )
    return Plan(manifest, credentials)


def provision(server: Server, manifest: Json, credentials: Json) -> Json:
    """The generation key before the user, so that a user who can log in has an identity; see the Protocol."""
    with server.connect() as session:
        identity.identify(session)
        identity.must_be_right_server(session, manifest)
        session.set(keys.generation_key(manifest), manifest["generation"], nx=True)
        if isinstance(seen := identity.judge(session, manifest), Different):
            raise Refused(seen.why)
        digest = hashlib.sha256(credentials["password"].encode()).hexdigest()  # errors and MONITOR show what is sent
        rules = ("reset", "on", f"#{digest}", f"~{keys.escape(manifest['prefix'])}*", *commands.rules(session))
        channels = ("resetchannels", f"&{keys.escape(manifest['prefix'])}*", identity.channel(manifest))
        session.execute_command("ACL", "SETUSER", manifest["user"], *rules, *channels)
        session.save_acl()
    return manifest


def adopt(server: Server, manifest: Json, generation: uuid.UUID) -> Json:
    """Mark user and prefix with the generation; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    if not manifest["prefix"].endswith(":"):
        raise Refused(f"prefix {manifest['prefix']!r} must end with ':', or it would match its neighbours' keys")
    with server.connect() as session:
        identity.must_keep_promises(session)
        full = KIND.manifest(
            user=manifest["user"],
            prefix=manifest["prefix"],
            generation=str(generation),
            server=manifest.get("server") or identity.identify(session),
        )
        identity.must_be_right_server(session, full)
        user = identity.acl_user(session, full["user"])
        if user is None:
            raise Refused(f"there is no ACL user {full['user']!r} to adopt")
        if full["user"] == session.acl_whoami():
            raise Refused(f"ACL user {full['user']!r} is the one that deprovisioner itself works with")
        taken = Refused(f"user {full['user']!r} or prefix {full['prefix']!r} belongs to another resource already")
        if any(c.startswith(identity.CHANNEL) and c != identity.channel(full) for c in user["channels"]):
            raise taken
        if SHUT in user["channels"]:
            raise Refused(f"ACL user {full['user']!r} cannot be adopted: {IN_QUARANTINE}")
        rights.must_stay_inside(session, full, user)
        if _is_uuid(older := keys.older_generation(session, full)) and older != full["generation"]:
            raise taken
        planted = session.set(keys.generation_key(full), full["generation"], nx=True)
        if not planted and keys.generation(session, full) != full["generation"]:
            raise taken
        if overlap := _overlap(session, full):
            if planted:
                keys.unlink_generation(session, full)
            raise Refused(f"prefix {full['prefix']!r} lies inside another resource's or around it: {overlap!r}")
        session.execute_command("ACL", "SETUSER", full["user"], identity.channel(full))
        session.save_acl()
    return full


def _overlap(session: Session, manifest: Json) -> str | None:
    """The prefix of another resource inside ours or around it. Two adoptions that race see each other's key."""
    prefix = manifest["prefix"]
    for end in (end for end, letter in enumerate(prefix[:-1]) if letter == ":"):
        if session.type(keys.generation_key({"prefix": prefix[: end + 1]})) != "none":
            return str(prefix[: end + 1])
    for key in session.scan_iter(match=f"{keys.MARKS}{keys.escape(prefix)}*", count=1000):
        if key != keys.generation_key(manifest):
            return str(key).removeprefix(keys.MARKS)
    # A resource that an older version made has no such key, but its user has a mark.
    for name, rules in identity.marked_users(session, identity.CHANNEL):
        reached = [
            rights.beginning(rule) for rule in rules if rule[:1] in "~%" and identity.channel(manifest) not in rules
        ]
        if any(one and (one.startswith(prefix) or prefix.startswith(one)) for one in reached):
            return f"that of ACL user {name}"
    return None


def _is_uuid(value: str | None) -> bool:
    try:
        return value is not None and bool(uuid.UUID(value))
    except ValueError:
        return False
