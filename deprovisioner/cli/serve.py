"""`deprovisioner up`, `migrate`, `api`, `worker` and `demo`: run the parts of the service."""

import os
from pathlib import Path

import click

from deprovisioner.cli.shell import WORDS, as_json_option, example, main
from deprovisioner.up import FURTHER
from outbox.errors import BadRequest


def _kinds(words: str) -> list[str]:
    kinds = [word.strip() for word in words.split(",") if word.strip()]
    if unknown := [kind for kind in kinds if kind not in FURTHER]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(FURTHER)}")
    return kinds


@main.command(
    epilog=example(
        "deprovisioner up --home /tmp/try --port 9000 --workers 2", f"deprovisioner up --with {','.join(FURTHER)}"
    )
)
@click.option(
    "--home", type=click.Path(path_type=Path), help="Where data, logs and `env` live.  [default: .deprovisioner]"
)
@click.option("--port", type=click.IntRange(1, 65535), help="The API's port.  [default: 8080]")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--with",
    "kinds",
    metavar="KIND,...",
    callback=lambda _context, _option, value: _kinds(value),
    default="",
    help=f"Backends of further kinds too, which the home keeps: {', '.join(FURTHER)}.",
)
def up(home: Path | None, port: int | None, workers: int, kinds: list[str]) -> None:
    """Start everything on this machine and serve until Ctrl-C.

    It starts PostgreSQL and Valkey servers of its own, except where you set DEPROVISIONER_DATABASE_URL,
    _BROKER_URL or _BACKENDS: then it uses the servers named there. --with mysql,rabbitmq starts MariaDB and RabbitMQ
    from the programs that it finds on this machine, s3 moto's server, webhook the example provisioner.
    """
    from deprovisioner.up.supervisor import Up
    from outbox import settings

    current = settings.load()
    Up(home or current.home, current.api_host, port or current.api_port, workers, os.environ, kinds).run()


@main.command(epilog=example("deprovisioner migrate --service-role deprovisioner_service"))
@click.option("--to", "revision", type=WORDS, default="head", show_default=True, help="The revision to reach.")
@click.option(
    "--service-role",
    type=WORDS,
    metavar="NAME",
    help="Grant this role what API and workers need, and no more.",
)
def migrate(revision: str, service_role: str | None) -> None:
    """Bring the control database's schema up to date; harmless when it is up to date.

    With DEPROVISIONER_SERVICE_PASSWORD set, it also creates the service role, or gives the role that password.
    """
    from alembic.util import CommandError

    import migrations
    from deprovisioner import grants
    from outbox import db, settings

    try:
        migrations.upgrade(revision)
    except CommandError as error:
        raise BadRequest(f"--to {revision}: {error}") from error
    if service_role is not None:
        with db.transaction() as session:
            if password := settings.get().service_password:
                grants.make_role(session, service_role, password)
            grants.grant(session, service_role)
    click.echo(f"schema at {revision}")
    if service_role is not None:
        click.echo(f"role {service_role} has the rights of the service")


@main.command(epilog=example("deprovisioner api"))
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on one port.")
def api(processes: int) -> None:
    """Serve the HTTP API on DEPROVISIONER_API_HOST:DEPROVISIONER_API_PORT."""
    import uvicorn

    from outbox import settings

    current = settings.get()
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=current.api_host,
        port=current.api_port,
        workers=processes,
        http="api.door:Door",
        ws="none",
        access_log=False,
        server_header=False,
        # Requests take milliseconds. A client that keeps its connection open must not keep the process from stopping.
        timeout_graceful_shutdown=5,
    )


@main.command(epilog=example("deprovisioner worker", "DEPROVISIONER_WORKER_SLOTS=32 deprovisioner worker"))
def worker() -> None:
    """Run one Celery worker process, with its sweep. After SIGTERM it first ends the teardowns that have started."""
    import importlib
    import warnings

    from outbox import settings

    settings.backends()
    # Messages carry no authority and are JSON, so root is no more at risk than another user.
    warnings.filterwarnings("ignore", r"\s*You're running the worker with superuser privileges")
    celery = importlib.import_module("worker.app").app  # by name: at import it reads the settings
    celery.worker_main(["--quiet", "worker", "--loglevel=WARNING"])


@main.command(epilog=example("deprovisioner demo --resources 10"))
@click.option("--resources", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many of each kind.")
@click.option(
    "--deletes", type=click.IntRange(1, 64), default=16, show_default=True, help="Concurrent DELETEs of each resource."
)
@as_json_option
def demo(resources: int, deletes: int, as_json: bool) -> None:
    """Watch the main job on real servers: DELETEs taken back, storms of them, a killed worker."""
    from deprovisioner.demo.story import Demo

    if not Demo(resources, deletes, as_json=as_json).run():
        raise SystemExit(1)
