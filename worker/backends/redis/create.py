"""Plan and provision an ACL user with its prefix."""

import hashlib
import secrets
import uuid

from redis import SSLConnection

from outbox.errors import Refused
from outbox.kinds.redis import KIND
from outbox.rows import Json
from worker.backends import Different, Plan
from worker.backends.redis import commands, endpoint, identity, keys
from worker.backends.redis.endpoint import Public
from worker.backends.redis.session import Server


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
