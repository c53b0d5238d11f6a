"""Adopt a schema that exists already, with the user that opens it; say beforehand what stands against it; let it go."""

import uuid
from collections.abc import Collection, Iterator

from outbox.errors import Refused
from outbox.kinds.mysql import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Finding, mark
from worker.backends.mysql import identity, names, registry, rights
from worker.backends.mysql.create import mark_user, must_be_right_server
from worker.backends.mysql.identity import MARK, Account, State
from worker.backends.mysql.session import INSPECT_SECONDS, Server, Session

COMMENT_CHARACTERS = 1024  # of a schema
_GRANT_OPTION = 1024  # the bit of `access` in mysql.global_priv


def adopt(server: Server, manifest: Json, generation: uuid.UUID) -> Json:
    """Record it, then mark user and schema with the generation; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        full = KIND.manifest(
            database=manifest["database"],
            user=manifest.get("user"),
            generation=str(generation),
            server=manifest.get("server") or registry.identify(session),
        )
        must_be_right_server(session, full)
        for what in filter(None, (full["database"], full["user"])):
            registry.lock(session, what)
        state = identity.read_state(session, full)
        if against := list(_against(session, state, full)):
            raise Refused("; ".join(f"{one.what}{one.mend and ': '}{one.mend}" for one in against))
        registry.put(session, full, frozenset(grant.account for grant in state.grants), making=False)
        mark_user(session, state, full)
        _mark_schema(session, full, state.comment or "")
        identity.must_be_same(identity.read_state(session, full), full)  # the marks were made by name
    return full


def _mark_schema(session: Session, manifest: Json, comment: str) -> None:
    ours = mark(manifest["generation"])
    if not comment.endswith(ours):
        _comment(session, manifest["database"], f"{comment} {ours}".strip())


def _comment(session: Session, database: str, comment: str) -> None:
    session.execute(f"ALTER DATABASE {names.identifier(database)} COMMENT = {names.literal(comment)}")


def adoptable(server: Server, manifest: Json) -> list[Finding]:
    """See `worker.backends.fleet.adoptable`."""
    try:
        identity.must_not_be_protected(server, manifest)
    except Refused as refused:
        return [Finding("refused", str(refused), "")]
    asked = {"user": None, "generation": "", "server": None} | manifest
    asked["generation"] = asked["generation"] or ""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        state = identity.read_state(session, asked)
        return list(_against(session, state, asked))


def _against(session: Session, state: State, manifest: Json) -> Iterator[Finding]:
    """Why the schema cannot be adopted, each with the statement that mends it where there is one."""
    database, user = manifest["database"], manifest["user"]
    if manifest["server"] not in (None, state.server):
        yield Finding("refused", f"this server is {state.server}, not {manifest['server']}", "")
        return
    if state.comment is None:
        yield Finding("not_there", f"there is no schema {database!r}", "")
        return
    if user is not None and not state.named(manifest):
        yield Finding("not_there", f"there is no user {user!r}", "")
        return
    if state.record is not None and state.record.closed is not None:
        yield Finding("refused", f"schema {database!r} cannot be adopted: {IN_QUARANTINE}", "")
    yield from _taken(session, state, manifest)
    if len(state.comment) + 1 + len(mark("")) + 36 > COMMENT_CHARACTERS:
        yield Finding("refused", f"the comment of schema {database!r} is too long: no mark fits behind it", "")
    if statement := rights.missing(session, database, state.grants):
        yield Finding("right_missing", f"the service's account may not manage schema {database!r}", statement)
    if user is not None:
        yield from reaching(session, state, manifest, state.named(manifest))


def _taken(session: Session, state: State, manifest: Json) -> Iterator[Finding]:
    """What another resource has. A mark that a customer wrote is one too: an administrator takes it off."""
    database, user = manifest["database"], manifest["user"]
    other = MARK.search(state.comment or "")
    if other and other[1] != manifest["generation"]:
        yield Finding(
            "refused", f"schema {database!r} belongs to another resource already: it is marked {other[0]!r}", ""
        )
    for rival in state.rivals:
        theirs = {"database": rival.database, "user": rival.user, "generation": rival.generation, "server": None}
        there = identity.read_state(session, theirs)
        alive = there.comment is not None and rival.database == database
        if alive or (rival.user == user and any(account.marked for account in there.accounts)):
            yield Finding(
                "refused", f"{database!r} or its user belongs to the resource of {mark(rival.generation)!r}", ""
            )


def reaching(session: Session, state: State, manifest: Json, accounts: Collection[Account]) -> Iterator[Finding]:
    """Rights of these accounts beyond the schema: they would go with the user, or reach a neighbour."""
    database, own, hosts = manifest["database"], set(state.grants), {account.host for account in accounts}
    for grant in rights.of_user(session, manifest["user"]) if accounts else ():
        if grant.host in hosts and grant not in own:
            mend = "; ".join(grant.take())
            what = f"user {grant.account} has rights elsewhere, on {grant.on}"
            yield Finding("refused", what, f"when its owner agrees: {mend}")
    for account in accounts:
        opener = names.account(account.user, account.host)
        access = session.ask(
            "SELECT COALESCE(JSON_VALUE(Priv, '$.access'), 0) FROM mysql.global_priv WHERE User = %s AND Host = %s",
            account.user,
            account.host,
        )
        if access and str(access[0][0]) not in ("0", ""):
            what = f"user {opener} has rights on the whole server, so is not a customer's"
            right = "GRANT OPTION" if int(access[0][0]) == _GRANT_OPTION else "ALL PRIVILEGES"
            yield Finding("refused", what, f"REVOKE {right} ON *.* FROM {opener}")
        for (role,) in session.ask(
            "SELECT Role FROM mysql.roles_mapping WHERE User = %s AND Host = %s AND Role <> %s",
            account.user,
            account.host,
            mark(manifest["generation"]),
        ):
            mend = f"REVOKE {names.identifier(role)} FROM {opener}"
            yield Finding("refused", f"user {opener} has the role {role!r}, which may reach beyond {database!r}", mend)


def unmark(server: Server, manifest: Json) -> Json:
    """See `worker.backends.fleet.unmark`; the record goes last, so that a death half-way is finished by the next."""
    with server.connect() as session:
        must_be_right_server(session, manifest)
        registry.lock(session, manifest["database"])
        state = identity.read_state(session, manifest)
        if state.record is None and not state.role and not (state.comment or "").endswith(mark(manifest["generation"])):
            return {}
        identity.must_be_same(state, manifest)
        if state.record is not None and state.record.closed is not None:
            raise Refused("it is in quarantine: restore it first")
        ours = mark(manifest["generation"])
        if state.comment is not None and state.comment.endswith(ours):
            _comment(session, manifest["database"], state.comment.removesuffix(ours).rstrip())
        if state.role:
            session.execute(f"DROP ROLE {names.identifier(ours)}")
        registry.forget(session, manifest)
        return {"statements": session.executed}
