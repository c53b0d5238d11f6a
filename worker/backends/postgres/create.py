"""Plan and provision a database with its role."""

import secrets
import uuid

from psycopg2 import extensions, sql

from outbox.errors import Refused, Transient
from outbox.kinds.postgres import KIND
from outbox.rows import Json
from worker.backends import Plan, mark
from worker.backends.postgres import endpoint, identity
from worker.backends.postgres.endpoint import Public
from worker.backends.postgres.identity import State
from worker.backends.postgres.session import INSPECT_SECONDS, Server, Session


def plan(server: Server, public: Public, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
    """Names from the resource's UUID, whole; see the Protocol."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        system_identifier = identity.system_identifier(session)
        reached = session.info.host, session.info.port
    manifest = KIND.manifest(
        database=f"db_{resource_id.hex}",
        role=f"usr_{resource_id.hex}",
        system_identifier=system_identifier,
        generation=str(generation),
    )
    credentials = endpoint.credentials(
        server.parameters,
        public,
        reached=reached,
        database=manifest["database"],
        user=manifest["role"],
        password=secrets.token_urlsafe(24),
    )
    return Plan(manifest, credentials)


def provision(server: Server, manifest: Json, credentials: Json) -> Json:
    """Role, database under a name of its own, then comment and final name in one transaction; see the Protocol."""
    with server.connect() as session:
        session.lock(manifest["database"])
        state = identity.read_state(session, manifest)
        identity.must_be_right_server(state, manifest)
        _create_role(session, state, manifest, credentials["password"])
        _create_database(session, state, manifest)
        made = identity.read_state(session, manifest)
        named = made.named(manifest["database"])
        if named is None or made.role is None:
            raise Transient(f"database {manifest['database']} or its role vanished while it was being created")
        complete = manifest | {"oid": named.oid, "role_oid": made.role.oid}
        identity.must_be_same(made, complete)  # the comments were made by name
        with server.connect(manifest["database"]) as inside:
            inside.execute("GRANT ALL ON SCHEMA public TO {role}", role=manifest["role"])
    return complete


def _create_role(session: Session, state: State, manifest: Json, password: str) -> None:
    # Hashed here, because the server logs CREATE ROLE with its password.
    verifier = extensions.encrypt_password(password, manifest["role"], session, "scram-sha-256")
    if state.role is not None:
        if not identity.is_our_role(state.role, manifest):
            raise Refused(f"role {manifest['role']!r} exists and is not of this resource")
        return
    with session.transaction():
        session.execute(
            "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT {limit} PASSWORD {password}",
            role=manifest["role"],
            limit=sql.Literal(session.server.slots.limit),
            password=sql.Literal(verifier),
        )
        session.execute(
            "COMMENT ON ROLE {role} IS {mark}",
            role=manifest["role"],
            mark=sql.Literal(mark(manifest["generation"])),
        )
        # As a member, a service role that is not a superuser can end the role's sessions and drop it later.
        session.execute("GRANT {role} TO CURRENT_USER", role=manifest["role"])


def _create_database(session: Session, state: State, manifest: Json) -> None:
    named = state.named(manifest["database"])
    if named is not None:
        if not identity.is_ours(named, manifest):
            raise Refused(f"database {manifest['database']!r} exists and is not of this resource")
        return
    if elsewhere := [d.name for d in state.databases if d.name != identity.new_name(manifest)]:
        raise Refused(f"database {elsewhere[0]!r} bears this resource's mark: it was renamed, or is a copy")
    new = identity.new_name(manifest)
    if state.named(new) is not None:
        # Left by an attempt that died. It may not be whole, and holds nothing yet.
        session.execute("DROP DATABASE {name}", name=new)
    # template0, because CREATE DATABASE fails while a session is in its template. FILE_COPY, because WAL_LOG leaves its
    # pages and files to the next checkpoint, and each DROP DATABASE waits for one.
    session.execute("CREATE DATABASE {name} TEMPLATE template0 STRATEGY FILE_COPY", name=new)
    created = identity.read_state(session, manifest).named(new)
    with session.transaction():
        session.execute("REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=new)
        session.execute(
            "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {name} TO {role}",
            name=new,
            role=manifest["role"],
        )
        session.execute(
            "COMMENT ON DATABASE {name} IS {mark}",
            name=new,
            mark=sql.Literal(mark(manifest["generation"])),
        )
        session.execute("ALTER DATABASE {old} RENAME TO {new}", old=new, new=manifest["database"])
        renamed = identity.read_state(session, manifest).named(manifest["database"])
        if created is None or renamed is None or renamed.oid != created.oid:  # all this was done by name
            raise Refused(f"database {new!r} is no longer the one that was just created")
