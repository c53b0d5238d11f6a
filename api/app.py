"""The application. `deprovisioner api` serves it. Any ASGI server can, but then without the bounds of `api.door`."""

import gc
from importlib.metadata import version

from fastapi import FastAPI

from api import health, problems
from api.limits import BodyLimit
from api.v1 import breakers, holds, jobs, operations, reconcile, recovery, resources
from outbox import credentials, db, logs, settings
from outbox.doorbell import bell


def create_app() -> FastAPI:
    """The application. A wrong setting raises SettingsError now, and not at the first request."""
    logs.configure()
    db.control_url()
    settings.backends()
    settings.brakes("", "")
    settings.get().need("broker_url")
    credentials.check()
    app = FastAPI(
        title="deprovisioner",
        version=version("deprovisioner"),
        description="Tears down what customers delete: exactly once, or visibly stuck.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # Operations before jobs: `redrive` in /v1/jobs/redrive is not a job's number.
    for routes in (resources, operations, jobs, holds, breakers, recovery, reconcile):
        app.include_router(routes.router, responses=problems.RESPONSES)
    app.include_router(health.router, responses=problems.responses(400, 405, 408, 413, 431, 500))
    problems.install(app)
    app.add_middleware(BodyLimit)
    bell.start()
    # Imported modules are never garbage. Unfrozen, each full collection scans them, and all requests stop for 80 ms.
    gc.collect()
    gc.freeze()
    return app
