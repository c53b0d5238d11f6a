"""A customer of a PostgreSQL backend: its resource, and what opens it."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

from outbox.rows import Json
from worker.backends.postgres import Postgres


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
