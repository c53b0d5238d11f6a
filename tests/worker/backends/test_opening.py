"""What is in quarantine, opened by hand as the runbook says: then it can be adopted."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import redis as client

from tests.support.servers import OLD_POSTGRES_PROGRAMS, OLD_REDIS_PROGRAM, Servers
from tests.support.subjects import postgres, redis
from tests.support.witness import PgServer, RedisServer
from worker.backends import objects


@pytest.fixture(params=["postgres", "postgres15", "redis", "redis7"])
def subject(request: pytest.FixtureRequest, servers: Servers) -> Iterator[postgres.Subject | redis.Subject]:
    """Each with the documented account."""
    match request.param:
        case "postgres" | "redis" as kind:
            server = servers.pg if kind == "postgres" else servers.redis
        case old:
            server = request.getfixturevalue(old)
    if isinstance(server, PgServer):
        with postgres.on(server, OLD_POSTGRES_PROGRAMS if request.param == "postgres15" else None) as made:
            yield made
    else:
        with redis.on(server, OLD_REDIS_PROGRAM if request.param == "redis7" else None) as made:
            yield made


def test_what_is_in_quarantine_is_adopted_once_a_person_has_opened_it_as_the_runbook_says(
    subject: postgres.Subject | redis.Subject,
) -> None:
    backend, server = subject.backend(), subject.server
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    backend.quarantine(manifest)
    for statement in _documented(type(backend).__name__.lower(), manifest):
        if isinstance(server, RedisServer):
            client.Redis.from_url(server.service_dsn).execute_command(*statement.split())
        else:
            PgServer(server.service_dsn, server.log).query(statement)
    (one,) = [one for one in objects(backend) if one.generation == manifest["generation"]]
    assert (one.names, one.quarantined, one.why) == (manifest, False, "")
    assert backend.adopt(one.names, uuid.UUID(one.generation)) == manifest
    assert subject.can_log_in(plan.credentials)
    backend.teardown(manifest, 1)


def _documented(kind: str, manifest: dict[str, Any]) -> list[str]:
    """The runbook's statements for an object in quarantine, with its names filled in."""
    page = (Path(__file__).parents[3] / "docs/runbook.md").read_text()
    found = re.search(rf"<!-- open: {kind} -->\n```\w*\n(.*?)```", page, re.DOTALL)
    assert found
    filled = Template(found[1]).substitute({name.upper(): value for name, value in manifest.items()})
    return filled.splitlines()
