"""A customer of a PostgreSQL backend: its resource, and what opens it."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from sqlalchemy import Connection, text

from outbox import credentials, jobs, resources
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from tests.support.factories import claims
from worker.backends.postgres import Postgres
from worker.run import Run

ROWS = ("outbox", "events", "resources", "observations")


@dataclass
class Customer:
    """A resource, and what opens it."""

    manifest: Json
    dsn: str

    @property
    def role(self) -> str:
        return self.manifest["role"]

    @property
    def quoted(self) -> str:
        return f'"{self.role}"'

    @contextmanager
    def inside(self, *statements: str) -> Iterator[Any]:
        """A session of the customer in its database, which has run these statements in one open transaction."""
        with closing(psycopg2.connect(self.dsn, application_name="app")) as connection:
            for statement in statements:
                connection.cursor().execute(statement)
            yield connection


def a_customer(backend: Postgres) -> Customer:
    """A customer whose database has just been made."""
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return Customer(backend.provision(plan.manifest, plan.credentials), plan.credentials["dsn"])


def in_the_outbox(db: Connection, backend: Postgres) -> tuple[uuid.UUID, Customer, Callable[[], Claim]]:
    """A customer that the product has made; and what enqueues its teardown, and claims it."""
    new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="n", manifest=None)
    resources.register(db, new, actor="me")
    (claim,) = claims(db)
    Run(claim, backend, worker="w")()
    resource, sealed = resources.find(db, claim.resource_id)
    assert resource.manifest is not None
    assert sealed is not None

    def deleted() -> Claim:
        jobs.enqueue(db, resource.id, actor="me")
        (teardown,) = claims(db)
        return teardown

    return resource.id, Customer(resource.manifest, credentials.unseal(sealed)["dsn"]), deleted


def stored(db: Connection) -> int:
    """How many characters the control database has of jobs and resources."""
    rows = (db.execute(text(f"SELECT string_agg(t::text, '') FROM {table} AS t")).scalar() for table in ROWS)
    return sum(len(row or "") for row in rows)
