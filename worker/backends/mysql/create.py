"""Plan, provision and adopt a schema with its user."""

import hashlib
import secrets
import uuid

from outbox.errors import Refused
from outbox.kinds.mysql import KIND
from outbox.rows import Json
from worker.backends import Different, Plan, mark
from worker.backends.mysql import endpoint, identity, names, registry, rights
from worker.backends.mysql.endpoint import Public
from worker.backends.mysql.identity import State
from worker.backends.mysql.session import INSPECT_SECONDS, Server, Session

HOST = "%"  # from where a customer's user may log in
# Without `_` and `%`: a grant on such a name, typed by hand without escapes, would match neighbours.
PREFIX = "dpdb"


def plan(server: Server, public: Public, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
    """Names from the resource's UUID, whole. Some clients take 32 characters of a user's name, so that is all of it."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        manifest = KIND.manifest(
            database=f"{PREFIX}{resource_id.hex}",
            user=resource_id.hex,
            generation=str(generation),
            server=registry.identify(session),
        )
    credentials = endpoint.credentials(
        server.address,
        public,
        database=manifest["database"],
        user=manifest["user"],
        password=secrets.token_urlsafe(24),
    )
    return Plan(manifest, credentials)


def provision(server: Server, manifest: Json, credentials: Json) -> Json:
    """The record first, then user, mark, schema, rights: what is there half-made is known as ours; see the Protocol."""
    with server.connect() as session:
        registry.identify(session)
        must_be_right_server(session, manifest)
        registry.lock(session, manifest["database"])
        state = identity.read_state(session, manifest)
        if isinstance(seen := identity.judge(state, manifest), Different):
            raise Refused(seen.why)
        opener = names.account(manifest["user"], HOST)
        registry.put(session, manifest, frozenset({opener}), making=True)
        if not state.named(manifest):
            session.execute(
                f"CREATE USER {opener} IDENTIFIED BY PASSWORD '(secret)' "
                f"WITH MAX_USER_CONNECTIONS {server.connection_limit}",
                secret=_hashed(credentials["password"]),
            )
        mark_user(session, identity.read_state(session, manifest), manifest)
        if state.comment is None:
            session.execute(
                f"CREATE DATABASE {names.identifier(manifest['database'])} CHARACTER SET utf8mb4 "
                f"COMMENT = {names.literal(mark(manifest['generation']))}"
            )
        session.execute(f"GRANT {', '.join(rights.ALL)} ON {names.schema(manifest['database'])} TO {opener}")
        identity.must_be_same(identity.read_state(session, manifest), manifest)  # all this was done by name
        registry.made(session, manifest)
    return manifest


def _hashed(password: str) -> str:
    """As the server stores it: its general log has what is sent."""
    inner = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return f"*{hashlib.sha1(inner, usedforsecurity=False).hexdigest().upper()}"


def mark_user(session: Session, state: State, manifest: Json) -> None:
    """Grant the role that is the mark to each account of the user; the service itself does not keep it."""
    bare = [account for account in state.named(manifest) if not account.marked]
    if not bare:
        return
    role, me = names.identifier(mark(manifest["generation"])), names.account(*session.me())
    if not state.role:
        session.execute(f"CREATE ROLE {role} WITH ADMIN {me}")
    for account in bare:
        session.execute(f"GRANT {role} TO {names.account(account.user, account.host)}")
    session.execute(f"REVOKE {role} FROM {me}")  # by name: CURRENT_USER is nobody in a replica, and stops it


def must_be_right_server(session: Session, manifest: Json) -> None:
    """Raises Refused on another server than the manifest's, and where no worker has named the server yet."""
    found = registry.server_id(session)
    if found is None or manifest.get("server") not in (None, found):
        raise Refused(identity.wrong_server(found, manifest))
