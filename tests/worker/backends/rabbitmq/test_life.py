"""A vhost's life through the worker: made, cut off, given back, lost from the rows, adopted again, destroyed."""

from sqlalchemy import Connection, text

from outbox import credentials, jobs, kinds, resources
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from tests.support.factories import claims, job, status_of
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.worker.test_provision import _LOST
from worker.backends.rabbitmq import Rabbitmq
from worker.intake import Intake
from worker.run import Run

NAME = "redis-main"  # rows know a backend by its name; the tests' file has no other


def registered(db: Connection, manifest: Json | None = None) -> Claim:
    new = NewResource(tenant="acme", kind="rabbitmq", backend=NAME, name="orders", manifest=manifest)
    resources.register(db, new, actor="me")
    return claims(db, backend=NAME)[0]


def test_a_vhost_s_life_through_the_worker(db: Connection, server: RabbitmqServer, backend: Rabbitmq) -> None:
    intake = Intake(backend)
    made = registered(db)
    Run(made, intake, worker="w")()
    resource, _ = resources.find(db, made.resource_id)
    assert resource.status == "active"
    manifest = resource.manifest
    assert manifest is not None
    sealed = db.execute(text("SELECT credentials FROM resources WHERE id = :id"), {"id": resource.id}).scalar_one()
    opened = credentials.unseal(bytes(sealed))
    assert server.can_log_in(opened)

    jobs.enqueue(db, resource.id, actor="me")
    db.execute(text("UPDATE resources SET purge_at = now() + interval '1 hour'"))
    db.execute(text("UPDATE outbox SET step = 'quarantine' WHERE state = 'pending'"))
    Run(claims(db, backend=NAME)[0], intake, worker="w")()
    assert (status_of(db, resource.id), server.can_log_in(opened)) == ("deleting", False)
    jobs.restore(db, resource.id, actor="op", reason="a mistake")
    Run(claims(db, backend=NAME)[0], intake, worker="w")()
    assert (status_of(db, resource.id), server.can_log_in(opened)) == ("active", True)

    db.execute(text(_LOST))
    (one,) = [one for one in intake.objects() if one.generation == str(made.generation)]
    assert (one.names, one.resource_id, one.why) == (manifest, made.resource_id, "")
    again = registered(db, kinds.check("rabbitmq", one.names))
    Run(again, intake, worker="w")()
    assert resources.find(db, again.resource_id)[0].manifest == manifest
    jobs.enqueue(db, again.resource_id, actor="me")
    teardown = claims(db, backend=NAME)[0]
    Run(teardown, intake, worker="w")()
    assert (job(db, teardown.id).state, status_of(db, again.resource_id)) == ("succeeded", "deleted")
    assert not server.bears(manifest)
    assert not server.can_log_in(opened)
