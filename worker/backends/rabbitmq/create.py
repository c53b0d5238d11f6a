"""Plan, provision and adopt a vhost with the user that opens it."""

import secrets
import uuid

from outbox.errors import Refused
from outbox.kinds.rabbitmq import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Plan
from worker.backends.rabbitmq import endpoint, identity, marks
from worker.backends.rabbitmq.endpoint import Public
from worker.backends.rabbitmq.session import Server, Session

LIMIT = "max-connections"


def plan(server: Server, public: Public, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
    """Names from the resource's UUID, whole; see the Protocol."""
    with server.connect() as session:
        manifest = KIND.manifest(
            vhost=f"vh_{resource_id.hex}",
            user=f"usr_{resource_id.hex}",
            generation=str(generation),
            server=identity.identify(session),
        )
        opened = {"vhost": manifest["vhost"], "user": manifest["user"], "password": secrets.token_urlsafe(24)}
        return Plan(manifest, endpoint.credentials(session, public, **opened))


def provision(server: Server, manifest: Json, credentials: Json, connection_limit: int | None) -> Json:
    """The vhost with its mark, the user with its mark, then what the user may do; see the Protocol."""
    name, user, tags = manifest["vhost"], manifest["user"], [marks.mark(manifest["generation"])]
    with server.connect() as session:
        identity.identify(session)
        identity.must_be_ours(session, manifest)
        # What is there is as an earlier attempt left it: to make it again would take away what was done to it since.
        if identity.read_vhost(session, manifest) is None:
            session.put("vhosts", name, description="", tags=tags)
        vhost, opener = identity.read_vhost(session, manifest), identity.read_user(session, manifest)
        if any(marks.note(marks.of(one)) is not None for one in (vhost, opener)):
            raise Refused(IN_QUARANTINE)
        if not identity.is_marked(vhost, manifest):
            raise Refused(
                "the server keeps no tags of vhosts, so nothing could be told from what bears its name; when all its "
                "nodes have the same version: rabbitmqctl enable_feature_flag virtual_host_metadata"
            )
        if connection_limit is not None:
            session.put("vhost-limits", name, LIMIT, value=connection_limit)
        if opener is None:
            session.put("users", user, password=credentials["password"], tags=tags)
        session.put("permissions", name, user, configure=".*", write=".*", read=".*")
        leave(session, name)
    return manifest


def leave(session: Session, vhost: str) -> None:
    """Take from the service's own account what the server gives to whoever makes a vhost: all that is in it."""
    session.delete("permissions", vhost, session.server.user)
