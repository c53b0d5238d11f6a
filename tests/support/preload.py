"""Imports what the product imports sooner or later: preloaded by the server that `forked.py` forks from.

That is most of the time that a start takes. `worker.app` is left out: it reads the settings.
"""

import gc
import importlib
import pkgutil

from deprovisioner import cli
from tests.support import crash_points, forked  # noqa: F401 - imported for those who fork from here

_OF_OTHERS = (
    "api.app",
    "celery.app.amqp",
    "celery.app.log",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.contrib.migrate",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.control",
    "celery.worker.loops",
    "encodings.idna",
    "kombu.transport.redis",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
_OURS = (f"{cli.__name__}.{module.name}" for module in pkgutil.iter_modules(cli.__path__) if module.name != "__main__")

for name in (*_OF_OTHERS, *_OURS, "migrations", "outbox.audit", "outbox.doctor"):
    importlib.import_module(name)
gc.collect()
gc.freeze()  # so that a child's collector does not copy these pages
