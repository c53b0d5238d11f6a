"""What every kind of backend must do: the same tests for each, on real servers, old versions among them.

To try a kind of your own, add a Subject of it to the fixture `subject`.
"""

import functools
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import psycopg2
import pytest
import redis

from deprovisioner.up import servers as embedded
from outbox.errors import ClaimLost, OutOfService, Refused, Transient, Unavailable
from tests.support import accounts, redis_servers
from tests.support.servers import OLD_POSTGRES_PROGRAMS, Servers, server_folder
from tests.support.standby import lagging
from tests.support.verbs import every_verb
from tests.support.witness import PgServer, RedisServer
from worker.backends import IN_QUARANTINE, Absent, Backend, Different, MarkedObject, Same, objects, prove
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis


@dataclass
class Subject:
    """A kind under test: its backend, a backend without a server, and how a customer and a witness see it."""

    backend: Backend
    dead: Backend
    witness: PgServer | RedisServer
    # A primary and a replica of it that lags: backends of both. None: this kind's own tests show it.
    replicated: Callable[[], AbstractContextManager[tuple[Backend, Backend]]] | None = None
    # The server answers reads and refuses writes.
    read_only: Callable[[], AbstractContextManager[None]] | None = None
    # What a person's hand can do to an object so that only a part of it still matches the manifest.
    disguises: tuple[Callable[[dict[str, Any]], None], ...] = ()
    # Leaves something of the first object in the second's, and lets no account enter the second's meanwhile.
    entangled: Callable[[dict[str, Any], dict[str, Any]], AbstractContextManager[None]] | None = None
    # Backends with accounts that each lack one of the documented rights.
    weaker: Callable[[], Iterator[Backend]] | None = None

    def provisioned(self) -> tuple[dict[str, Any], dict[str, Any]]:
        plan = self.backend.plan(uuid.uuid4(), uuid.uuid4())
        return self.backend.provision(plan.manifest, plan.credentials), plan.credentials

    def can_log_in(self, credentials: dict[str, Any]) -> bool:
        try:
            if "dsn" in credentials:
                psycopg2.connect(credentials["dsn"]).close()
            else:
                redis.Redis.from_url(credentials["url"]).ping()
        except (psycopg2.OperationalError, redis.AuthenticationError):
            return False
        return True

    def put(self, credentials: dict[str, Any]) -> None:
        if "dsn" in credentials:
            connection = psycopg2.connect(credentials["dsn"])
            connection.cursor().execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
            connection.commit()
            connection.close()
        else:
            client = redis.Redis.from_url(credentials["url"])
            for n in range(1200):
                client.set(f"{credentials['prefix']}k{n}", n)


@contextmanager
def _replicated_postgres(programs: Path | None = None) -> Iterator[tuple[Backend, Backend]]:
    with lagging(programs) as (primary, standby):
        yield Postgres(primary.service_dsn), Postgres(standby.service_dsn)


def _disguises(witness: PgServer) -> tuple[Callable[[dict[str, Any]], None], ...]:
    """By hand: a database renamed and re-commented; the same with its role renamed; a role left under another name."""

    def by_hand(*statements: str) -> Callable[[dict[str, Any]], None]:
        def act(manifest: dict[str, Any]) -> None:
            for statement in statements:
                witness.query(statement.format(**manifest))

        return act

    renamed = 'ALTER DATABASE "{database}" RENAME TO "moved_{generation}"'
    recommented = "COMMENT ON DATABASE \"moved_{generation}\" IS 'mine'"
    role_renamed = 'ALTER ROLE "{role}" RENAME TO "r_{generation}"'
    return (
        by_hand(renamed, recommented),
        by_hand(renamed, recommented, role_renamed),
        by_hand('DROP DATABASE "{database}"', role_renamed),
    )


def _entangled(witness: PgServer) -> Callable[[dict[str, Any], dict[str, Any]], AbstractContextManager[None]]:
    @contextmanager
    def act(manifest: dict[str, Any], neighbours: dict[str, Any]) -> Iterator[None]:
        witness.query(f'CREATE SCHEMA left_over AUTHORIZATION "{manifest["role"]}"', database=neighbours["database"])
        witness.query(f'ALTER DATABASE "{neighbours["database"]}" ALLOW_CONNECTIONS false')
        yield
        witness.query(f'ALTER DATABASE "{neighbours["database"]}" ALLOW_CONNECTIONS true')

    return act


@contextmanager
def _without_replicas(url: str) -> Iterator[None]:
    """Each write is refused (NOREPLICAS), as on a server that lost the replicas that it must have."""
    with redis.Redis.from_url(url) as administrator:
        administrator.config_set("min-replicas-to-write", 1)
        try:
            yield
        finally:
            administrator.config_set("min-replicas-to-write", 0)


def _weaker(server: PgServer) -> Iterator[Backend]:
    for right in ("CREATEDB", "CREATEROLE"):
        yield Postgres(accounts.fresh(server, f"weak_{uuid.uuid4().hex}", lacking=right))


@contextmanager
def _replicated_redis(program: str) -> Iterator[tuple[Backend, Backend]]:
    folder = server_folder("replica")
    with (
        redis_servers.running(program, folder / "a") as primary,
        redis_servers.running(program, folder / "b") as replica,
    ):
        services = [accounts.valkey(server.url) for server in (primary, replica)]
        redis_servers.replicate(replica, primary)
        replica.client.replicaof("127.0.0.1", embedded.free_port())  # it hears no more from its primary
        yield Redis(services[0]), Redis(services[1])
    shutil.rmtree(folder)


def _redis_disguises(witness: RedisServer) -> tuple[Callable[[dict[str, Any]], None], ...]:
    """By hand: a user copied to another name, a user made again, keys left alone, a generation key that is none."""
    client = witness.client

    def copied(manifest: dict[str, Any]) -> None:
        mark = f"&deprovisioner:gen:{manifest['generation']}"
        client.execute_command("ACL", "SETUSER", f"copy_{manifest['user']}", "resetchannels", mark)
        client.acl_deluser(manifest["user"])
        client.delete(f"deprovisioner:gen:{manifest['prefix']}")

    def made_again(manifest: dict[str, Any]) -> None:
        client.acl_deluser(manifest["user"])
        client.execute_command("ACL", "SETUSER", manifest["user"], "on", ">p")
        client.delete(f"deprovisioner:gen:{manifest['prefix']}")

    def left(manifest: dict[str, Any]) -> None:
        client.acl_deluser(manifest["user"])
        client.rename(f"deprovisioner:gen:{manifest['prefix']}", f"{manifest['prefix']}other")

    def overwritten(manifest: dict[str, Any]) -> None:
        client.delete(f"deprovisioner:gen:{manifest['prefix']}")
        client.rpush(f"deprovisioner:gen:{manifest['prefix']}", 1)

    return copied, made_again, left, overwritten


def _weaker_redis(server: RedisServer) -> Iterator[Backend]:
    (statement,) = accounts.documented("redis")
    for right in ("+acl|setuser", "+acl|getuser", "+get"):
        assert f" {right} " in statement
        name = f"weak_{uuid.uuid4().hex}"
        lacking = statement.replace(accounts.NAME, name).replace("CHANGE-ME", "p").replace(f" {right} ", " ")
        server.client.execute_command(*lacking.split())
        yield Redis(server.url.replace("redis://", f"redis://{name}:p@"))
        server.client.acl_deluser(name)


@pytest.fixture(params=["postgres", "postgres15", "redis", "redis7"])
def subject(request: pytest.FixtureRequest, servers: Servers) -> Subject:
    """Each with the account that docs/production.md documents, and no other right."""
    match request.param:
        case "postgres":
            server: PgServer | RedisServer = servers.pg
        case "redis":
            server = servers.redis
        case old:
            server = request.getfixturevalue(old)
    nowhere = embedded.free_port()
    if isinstance(server, PgServer):
        return Subject(
            Postgres(server.service_dsn),
            Postgres(f"postgresql://x@127.0.0.1:{nowhere}/x"),
            server,
            replicated=functools.partial(
                _replicated_postgres, OLD_POSTGRES_PROGRAMS if request.param == "postgres15" else None
            ),
            disguises=_disguises(server),
            entangled=_entangled(server),
            weaker=lambda: _weaker(server),
        )
    url = server.url
    program = "redis" if request.param == "redis7" else "valkey"
    return Subject(
        Redis(server.service_dsn),
        Redis(f"redis://127.0.0.1:{nowhere}/0"),
        server,
        replicated=functools.partial(_replicated_redis, program),
        read_only=lambda: _without_replicas(url),
        disguises=_redis_disguises(server),
        weaker=lambda: _weaker_redis(server),
    )


def test_a_life_from_plan_to_absence(subject: Subject) -> None:
    plan = subject.backend.plan(uuid.uuid4(), uuid.uuid4())
    assert isinstance(subject.backend.inspect(plan.manifest), Absent), "a plan changes nothing on the server"
    manifest = subject.backend.provision(plan.manifest, plan.credentials)
    assert isinstance(subject.backend.inspect(manifest), Same)
    assert subject.can_log_in(plan.credentials)
    subject.put(plan.credentials)
    subject.backend.teardown(manifest, 1)
    assert isinstance(subject.backend.inspect(manifest), Absent)
    assert not subject.witness.bears(manifest)
    assert not subject.can_log_in(plan.credentials)


def test_every_step_may_be_repeated(subject: Subject) -> None:
    plan = subject.backend.plan(uuid.uuid4(), uuid.uuid4())
    first = subject.backend.provision(plan.manifest, plan.credentials)
    assert subject.backend.provision(plan.manifest, plan.credentials) == first
    assert subject.can_log_in(plan.credentials)
    for _ in range(2):
        subject.backend.quarantine(first)
    for _ in range(2):
        subject.backend.teardown(first, 1)
    assert isinstance(subject.backend.inspect(first), Absent)


def test_quarantine_ends_the_customer_s_access_and_release_restores_it(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    subject.put(credentials)
    subject.backend.quarantine(manifest)
    assert not subject.can_log_in(credentials)
    assert isinstance(subject.backend.inspect(manifest), Same), "it is still there"
    subject.backend.release(manifest)
    assert subject.can_log_in(credentials)
    subject.backend.teardown(manifest, 1)


def test_a_login_proves_a_release_and_nothing_else_does(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    for _ in range(2):
        subject.backend.quarantine(manifest)
    for proven in (credentials, None):
        with pytest.raises(Transient):
            prove(subject.backend, manifest, proven)
    for _ in range(2):
        subject.backend.release(manifest)
    assert prove(subject.backend, manifest, credentials)
    assert prove(subject.backend, manifest, None)
    with pytest.raises(Transient) as failed:
        prove(subject.backend, manifest, credentials | {"password": "a-wrong-one"})
    assert "a-wrong-one" not in str(failed.value)
    subject.backend.teardown(manifest, 1)


@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_worker_whose_claim_is_lost_neither_closes_nor_opens(subject: Subject, verb: str) -> None:
    manifest, credentials = subject.provisioned()
    if verb == "release":
        subject.backend.quarantine(manifest)
    before = subject.backend.inspect(manifest)

    def lost() -> None:
        raise ClaimLost("another worker has it")

    with pytest.raises(ClaimLost):
        getattr(subject.backend, verb)(manifest, lost)
    assert subject.backend.inspect(manifest) == before
    assert subject.can_log_in(credentials) == (verb == "quarantine")
    subject.backend.teardown(manifest, 1)


def test_what_is_told_of_an_object_is_what_its_adoption_takes(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    bystanders, _ = subject.provisioned()

    def told() -> MarkedObject:
        (one,) = [one for one in objects(subject.backend) if one.generation == manifest["generation"]]
        return one

    one = told()
    assert (one.names, one.quarantined, one.contradictory, one.why) == (manifest, False, False, "")
    assert one.resource_id is not None
    assert one.resource_id.hex in str(manifest)
    assert subject.backend.adopt(one.names, uuid.UUID(one.generation)) == manifest
    assert subject.can_log_in(credentials), "an adoption changes nothing of what it marks"
    subject.backend.quarantine(manifest)
    one = told()
    assert (one.names, one.quarantined, one.contradictory, one.why) == (manifest, True, False, IN_QUARANTINE)
    with pytest.raises(Refused, match="in quarantine"):
        subject.backend.adopt(one.names, uuid.UUID(one.generation))
    assert not subject.can_log_in(credentials)
    subject.backend.release(one.names)
    assert subject.backend.adopt(told().names, uuid.UUID(one.generation)) == manifest
    subject.backend.teardown(manifest, 1)
    left = {one.generation for one in objects(subject.backend)}
    assert left & {manifest["generation"], bystanders["generation"]} == {bystanders["generation"]}


def test_what_is_in_quarantine_is_adopted_once_a_person_has_opened_it_as_the_runbook_says(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    subject.backend.quarantine(manifest)
    for statement in documented_opening(subject.backend, manifest):
        if isinstance(subject.witness, PgServer):
            PgServer(subject.witness.service_dsn, subject.witness.log).query(statement)
        else:
            redis.Redis.from_url(subject.witness.service_dsn).execute_command(*statement.split())
    (one,) = [one for one in objects(subject.backend) if one.generation == manifest["generation"]]
    assert (one.names, one.quarantined, one.why) == (manifest, False, "")
    assert subject.backend.adopt(one.names, uuid.UUID(one.generation)) == manifest
    assert subject.can_log_in(credentials)
    subject.backend.teardown(manifest, 1)


def documented_opening(backend: Backend, manifest: dict[str, Any]) -> list[str]:
    """The runbook's statements for an object in quarantine, with its names filled in."""
    kind = type(backend).__name__.lower()
    page = (Path(__file__).parents[3] / "docs/runbook.md").read_text()
    found = re.search(rf"<!-- open: {kind} -->\n```\w*\n(.*?)```", page, re.DOTALL)
    assert found
    filled = Template(found[1]).substitute({name.upper(): value for name, value in manifest.items()})
    return filled.splitlines()


def test_an_open_session_does_not_stop_the_teardown(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    if "dsn" in credentials:
        session = psycopg2.connect(credentials["dsn"])
        session.cursor().execute("SELECT 1")
        subject.backend.teardown(manifest, 1)
        with pytest.raises(psycopg2.OperationalError):
            session.cursor().execute("SELECT 1")
    else:
        held = redis.Redis.from_url(credentials["url"], single_connection_client=True, retry=None)
        held.ping()
        subject.backend.teardown(manifest, 1)
        with pytest.raises((redis.AuthenticationError, redis.ConnectionError)):
            held.set(f"{manifest['prefix']}late", 1)
    assert not subject.witness.bears(manifest)


def test_another_generation_under_the_same_names_is_never_touched(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    stranger = manifest | {"generation": str(uuid.uuid4())}
    assert isinstance(subject.backend.inspect(stranger), Different)
    for act in (subject.backend.quarantine, subject.backend.release, lambda m: subject.backend.teardown(m, 1)):
        with pytest.raises(Refused):
            act(stranger)
    assert subject.can_log_in(credentials)
    subject.backend.teardown(manifest, 1)


def test_the_wrong_server_is_refused(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    elsewhere = manifest | {"system_identifier": 1, "server": "another"}
    assert isinstance(subject.backend.inspect(elsewhere), Different)
    with pytest.raises(Refused):
        subject.backend.teardown(elsewhere, 1)
    assert subject.can_log_in(credentials)
    plan = subject.backend.plan(uuid.uuid4(), uuid.uuid4())
    with pytest.raises(Refused):
        subject.backend.provision(plan.manifest | {"system_identifier": 1, "server": "another"}, plan.credentials)
    assert not subject.witness.bears(plan.manifest)
    subject.backend.teardown(manifest, 1)
    gone_from = subject.backend.inspect(elsewhere)
    assert isinstance(gone_from, Different), "absent counts only on the right server"


def test_every_verb_says_unavailable_when_the_server_is_out_of_reach(subject: Subject) -> None:
    manifest, credentials = subject.provisioned()
    for act in every_verb(subject.dead, manifest, credentials):
        with pytest.raises(Unavailable):
            act()
    subject.backend.teardown(manifest, 1)


def test_a_provision_that_died_half_way_is_torn_down(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = subject.backend.plan(uuid.uuid4(), uuid.uuid4())

    class DiedError(BaseException):
        pass

    def die(*_: object) -> None:
        raise DiedError

    step = "postgres.create._create_database" if "dsn" in plan.credentials else "redis.session.Session.save_acl"
    with monkeypatch.context() as patch:
        patch.setattr(f"worker.backends.{step}", die)
        with pytest.raises(DiedError):
            subject.backend.provision(plan.manifest, plan.credentials)
    assert subject.witness.bears(plan.manifest)
    assert isinstance(subject.backend.inspect(plan.manifest), Same)
    subject.backend.teardown(plan.manifest, 1)
    assert not subject.witness.bears(plan.manifest)


def test_a_replica_that_lags_is_not_believed(subject: Subject) -> None:
    if subject.replicated is None:
        pytest.skip("shown for another version or account of this kind")
    with subject.replicated() as (primary, replica):
        plan = primary.plan(uuid.uuid4(), uuid.uuid4())
        manifest = primary.provision(plan.manifest, plan.credentials)
        for act in every_verb(replica, manifest, plan.credentials):
            with pytest.raises(OutOfService):
                act()
        assert isinstance(primary.inspect(manifest), Same)
        assert subject.can_log_in(plan.credentials)


def test_a_server_that_refuses_writes_is_away_and_nothing_is_destroyed(subject: Subject) -> None:
    if subject.read_only is None:
        pytest.skip("this kind has no writable server that is read-only; see the replica")
    (manifest, credentials), missing = subject.provisioned(), subject.backend.plan(uuid.uuid4(), uuid.uuid4())
    subject.put(credentials)
    with subject.read_only():
        for act in (
            lambda: subject.backend.provision(missing.manifest, missing.credentials),
            lambda: subject.backend.provision(manifest, credentials),
            lambda: subject.backend.teardown(manifest, 1),
        ):
            with pytest.raises(OutOfService):
                act()
        assert isinstance(subject.backend.inspect(manifest), Same)
        assert not subject.can_log_in(credentials), "to end a customer's access, the server need not write"
    assert subject.witness.bears(manifest)
    subject.backend.release(manifest)
    assert subject.can_log_in(credentials)
    subject.backend.teardown(manifest, 2)
    assert isinstance(subject.backend.inspect(manifest), Absent)
    assert not subject.witness.bears(manifest)


def test_a_part_that_matches_is_not_absence(subject: Subject) -> None:
    if not subject.disguises:
        pytest.skip("shown for another version or account of this kind")
    for disguise in subject.disguises:
        manifest, _ = subject.provisioned()
        disguise(manifest)
        assert isinstance(subject.backend.inspect(manifest), Different)
        for act in (subject.backend.quarantine, subject.backend.release, lambda m: subject.backend.teardown(m, 1)):
            with pytest.raises(Refused):
                act(manifest)


def test_a_neighbour_s_trouble_stays_the_neighbour_s(subject: Subject) -> None:
    if subject.entangled is None:
        pytest.skip("objects of this kind have nothing in each other's")
    (manifest, credentials), (neighbours, _) = subject.provisioned(), subject.provisioned()
    bystanders, _ = subject.provisioned()
    with subject.entangled(manifest, neighbours):
        with pytest.raises(Transient, match=neighbours["database"]):
            subject.backend.teardown(manifest, 1)
        assert not subject.can_log_in(credentials)
        subject.backend.teardown(bystanders, 1)
        assert not subject.witness.bears(bystanders)
    subject.backend.teardown(manifest, 2)
    assert not subject.witness.bears(manifest)
    assert isinstance(subject.backend.inspect(neighbours), Same)
    subject.backend.teardown(neighbours, 1)


def test_a_neighbour_that_is_no_longer_itself_stops_no_teardown_and_is_not_touched(subject: Subject) -> None:
    for disguise in subject.disguises:
        (manifest, credentials), (neighbours, _) = subject.provisioned(), subject.provisioned()
        disguise(neighbours)
        before = subject.backend.inspect(neighbours)
        subject.put(credentials)
        subject.backend.teardown(manifest, 1)
        assert isinstance(subject.backend.inspect(manifest), Absent)
        assert subject.backend.inspect(neighbours) == before


def test_an_account_that_lacks_a_documented_right_is_refused_and_the_object_stays(subject: Subject) -> None:
    if subject.weaker is None:
        pytest.skip("no weaker account of this kind is tried here")
    manifest, _ = subject.provisioned()
    for weak in subject.weaker():
        plan = weak.plan(uuid.uuid4(), uuid.uuid4())
        with pytest.raises(Refused, match=r"permission denied|NOPERM"):
            weak.provision(plan.manifest, plan.credentials)
        with pytest.raises(Refused, match=r"permission denied|must be owner|NOPERM"):
            weak.teardown(manifest, 1)
        assert isinstance(subject.backend.inspect(manifest), Same)
    subject.backend.teardown(manifest, 2)
    assert not subject.witness.bears(manifest)
