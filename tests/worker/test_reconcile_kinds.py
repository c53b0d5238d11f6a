"""Reconciliation knows no kind: on each, what agrees is no finding, and what differs is found."""

import uuid

import pytest
from sqlalchemy import Connection

from outbox.settings import BackendConfig
from tests.support.reconciling import a_row, keys, made, standing
from tests.support.subjects import mysql, rabbitmq, s3, webhook
from worker import reconcile

pytestmark = pytest.mark.proof
SUBJECTS = {"mysql": mysql, "rabbitmq": rabbitmq, "s3": s3, "webhook": webhook}


@pytest.mark.parametrize("kind", SUBJECTS)
def test_each_kind_tells_what_agrees_and_what_differs(db: Connection, kind: str) -> None:
    config = BackendConfig("x-main", kind, 1)
    with SUBJECTS[kind].subject() as subject:
        backend = subject.backend()

        def row(manifest: dict[str, object], status: str = "active") -> uuid.UUID:
            return a_row(db, manifest, status=status, backend="x-main", kind=kind)

        for _ in range(3):
            row(made(backend))
        unknown, lost = made(backend), made(backend)
        survives, missing = row(made(backend), "deleted"), row(lost)
        subject.destroyed_by_hand(lost)
        assert reconcile.run(config, backend, actor="w1").error is None
        assert keys(db) == {
            ("unknown", unknown["generation"]),
            ("survives", str(survives)),
            ("missing", str(missing)),
        }
        assert all(one.parts for one in standing(db) if one.code != "missing")
