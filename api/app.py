"""The application. `deprovisioner api` serves it; any ASGI server can: `uvicorn api.app:create_app --factory`."""

import gc
from importlib.metadata import version

from fastapi import FastAPI

from api import health, problems
from api.limits import BodyLimit
from api.v1 import breakers, holds, jobs, operations, resources
from outbox import credentials, db, logs, settings
from outbox.doorbell import bell


def create_app() -> FastAPI:
    """The application, its settings checked: a wrong one is an error now, not at the first request."""
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
    )
    # operations before jobs: /v1/jobs/redrive is no job's number
    for routes in (resources, operations, jobs, holds, breakers):
        app.include_router(routes.router, responses=problems.RESPONSES)
    app.include_router(health.router)
    problems.install(app)
    app.add_middleware(BodyLimit)
    bell.start()
    # What was imported stays: to look through all of it for garbage again and again stops every request for some 80 ms.
    gc.collect()
    gc.freeze()
    return app
