"""The command `deprovisioner`. Heavy parts are imported by the command that needs them.

Exit codes: 0 done, 1 refused or not found, 2 usage.
"""

import dataclasses
import datetime as dt
import getpass
import json
import os
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from outbox import settings
from outbox.errors import DeprovisionerError, SettingsError


class _Errors(click.Group):
    """Shows our errors as one line on stderr, exit code 1; a lost control database too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise _Failed(str(error), code=2) from error
        except DeprovisionerError as error:
            raise _Failed(str(error)) from error
        except Exception as error:
            from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

            if not isinstance(error, SQLAlchemyError):
                raise
            text = str(getattr(error, "orig", None) or error).strip()
            hint = " (run `deprovisioner migrate` first?)" if "does not exist" in text else ""
            raise _Failed(f"control database: {text.splitlines()[0]}{hint}") from error


class _Failed(click.ClickException):
    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click declares it for the class


def _example(*lines: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")


@click.group(cls=_Errors, epilog=_example("deprovisioner up", "deprovisioner jobs list --state stuck"))
@click.version_option(package_name="deprovisioner")
def main() -> None:
    """Tears down what customers delete: exactly once, or visibly stuck."""


# -- running the parts -------------------------------------------------------------------------------------------


@main.command(epilog=_example("deprovisioner up --home /tmp/try --port 9000 --workers 2"))
@click.option(
    "--home", type=click.Path(path_type=Path), help="Where data, logs and `env` live.  [default: .deprovisioner]"
)
@click.option("--port", type=click.IntRange(1, 65535), help="The API's port.  [default: 8080]")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
def up(home: Path | None, port: int | None, workers: int) -> None:
    """Start everything on this machine and serve until Ctrl-C.

    PostgreSQL and Valkey come embedded, unless DEPROVISIONER_DATABASE_URL, _BROKER_URL or _BACKENDS say
    where they are.
    """
    from outbox.supervisor import Up  # noqa: PLC0415

    current = settings.load()
    Up(home or current.home, current.api_host, port or current.api_port, workers, os.environ).run()


@main.command(epilog=_example("deprovisioner migrate"))
@click.option("--to", "revision", default="head", show_default=True, help="The revision to reach.")
def migrate(revision: str) -> None:
    """Bring the control database's schema up to date; harmless when it is."""
    import migrations  # noqa: PLC0415

    migrations.upgrade(revision)
    click.echo(f"schema at {revision}")


@main.command(epilog=_example("deprovisioner api"))
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on one port.")
def api(processes: int) -> None:
    """Serve the HTTP API on DEPROVISIONER_API_HOST:DEPROVISIONER_API_PORT."""
    import uvicorn  # noqa: PLC0415

    current = settings.get()
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=current.api_host,
        port=current.api_port,
        workers=processes,
        access_log=False,
        server_header=False,
        # Requests take milliseconds; a connection kept open must not keep the process from stopping.
        timeout_graceful_shutdown=5,
    )


@main.command(epilog=_example("deprovisioner worker", "DEPROVISIONER_WORKER_SLOTS=32 deprovisioner worker"))
def worker() -> None:
    """Run one Celery worker process, with its sweep. SIGTERM lets started teardowns end first."""
    import importlib  # noqa: PLC0415

    settings.backends()
    celery = importlib.import_module("worker.app").app  # by name: outbox knows no worker
    # No gossip, mingle or heartbeat: workers meet in the database, and idle brokers stay idle.
    celery.worker_main(
        ["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    )


@main.command(epilog=_example("deprovisioner demo --resources 10"))
@click.option("--resources", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many of each kind.")
@click.option(
    "--deletes", type=click.IntRange(1, 64), default=16, show_default=True, help="Concurrent DELETEs of each."
)
@_as_json
def demo(resources: int, deletes: int, as_json: bool) -> None:
    """The main job on real servers, to watch: storms of DELETEs, a worker killed, and the servers' own records."""
    from outbox.demo import Demo  # noqa: PLC0415

    if not Demo(resources, deletes, as_json=as_json).run():
        raise SystemExit(1)


@main.command(
    epilog=_example("deprovisioner doctor", "deprovisioner doctor --json | jq '.checks[] | select(.count > 0)'")
)
@_as_json
def doctor(as_json: bool) -> None:
    """Check every invariant of this installation. Reads only; exit code 1 when something is broken."""
    _operate()
    from outbox import db  # noqa: PLC0415
    from outbox.doctor import CHECKS, examine  # noqa: PLC0415

    with db.snapshot() as session:
        found = {finding.check.code: finding for finding in examine(session)}
    ok = not any(finding.status != "warning" for finding in found.values())
    if as_json:
        _print_json({"ok": ok, "checks": [_checked(check, found.get(check.code)) for check in CHECKS]})
    else:
        for check in CHECKS:
            _show_checked(**_checked(check, found.get(check.code)))
    if not ok:
        raise SystemExit(1)


def _checked(check: Any, finding: Any) -> dict[str, Any]:
    return {
        "code": check.code,
        "status": finding.status if finding else "ok",
        "count": finding.count if finding else 0,
        "subject": check.subject,
        "sample": [vars(offender) for offender in finding.sample] if finding else [],
        "means": check.means,
        "do": finding.do if finding else check.do,
        "error": finding.error if finding else None,
    }


def _show_checked(
    code: str, status: str, count: int, subject: str, sample: list[Any], means: str, do: str, error: str | None
) -> None:
    if status == "ok":
        click.echo(f"ok         {code}")
        return
    label = status if status == "warning" else status.upper()
    click.echo(f"{label:<9}  {code}: {error or means}")
    for row in sample:
        click.echo(f"           {subject} {row['id']}  since {_cell(row['since'])}  {row['note'] or ''}".rstrip())
    if count > len(sample):
        click.echo(f"           and {count - len(sample)} more")
    click.echo(f"           what to do: {do}")


# -- jobs ----------------------------------------------------------------------------------------------------------


@main.group()
def jobs() -> None:
    """Read the outbox, and re-drive what is stuck."""
    _operate()


@jobs.command("list", epilog=_example("deprovisioner jobs list --state stuck --backend pg-main --json"))
@click.option("--state", type=click.Choice(["pending", "running", "stuck", "succeeded", "cancelled"]))
@click.option("--kind", type=click.Choice(["provision", "deprovision", "restore"]))
@click.option("--reason", type=click.Choice(["attempts_exhausted", "refused", "outcome_unknown"]))
@click.option("--backend")
@click.option("--tenant")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="`next_cursor` of the page before.")
@_as_json
def jobs_list(limit: int, as_json: bool, **filters: Any) -> None:
    """Jobs, newest first."""
    from outbox import db, queries  # noqa: PLC0415

    with db.statement() as session:
        page = queries.list_jobs(session, limit=limit, **filters)
    columns = ("id", "kind", "state", "stuck_reason", "resource_id", "backend", "fence", "attempts", "last_error")
    _show_page(page, columns, as_json)


@jobs.command("show", epilog=_example("deprovisioner jobs show 42"))
@click.argument("job_id", type=click.IntRange(1, 2**63 - 1))
@_as_json
def jobs_show(job_id: int, as_json: bool) -> None:
    """One job: its attempts, and every event."""
    from outbox import db, queries  # noqa: PLC0415

    with db.statement() as session:
        story = queries.job_story(session, job_id)
    if as_json:
        told = dataclasses.asdict(story)
        _print_json(told.pop("job") | {"attempt_history": told.pop("attempts")} | told)
        return
    _print_fields(vars(story.job) | {"tenant": story.tenant})
    click.echo("\nattempts")
    _print_table(
        [vars(attempt) for attempt in story.attempts],
        ("fence", "worker", "claimed_at", "started_at", "finished_at", "outcome", "error"),
    )
    click.echo("\nevents")
    _print_table([vars(event) for event in story.events], ("at", "event", "fence", "actor", "reason", "detail"))


@jobs.command(
    "redrive", epilog=_example("deprovisioner jobs redrive 42 --fence 7 --reason 'disk was full, is not now'")
)
@click.argument("job_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--fence", type=click.IntRange(0), required=True, help="The fence that `jobs show` told you.")
@click.option("--reason", required=True, help="Why; kept with the job.")
@_as_json
def jobs_redrive(job_id: int, fence: int, reason: str, as_json: bool) -> None:
    """Give a stuck job fresh attempts. It looks at the backend before it acts."""
    from outbox import db, doorbell  # noqa: PLC0415
    from outbox import jobs as transitions  # noqa: PLC0415

    with db.statement() as session:
        job = transitions.redrive(session, job_id, fence=fence, actor=_me(), reason=reason)
    doorbell.ring_now()
    _print_json(vars(job)) if as_json else click.echo(f"job {job.id} is pending again")


# -- resources -----------------------------------------------------------------------------------------------------


@main.group()
def resources() -> None:
    """Read and delete resources."""
    _operate()


@resources.command("list", epilog=_example("deprovisioner resources list --status deleting --tenant acme"))
@click.option("--status", type=click.Choice(["provisioning", "active", "deleting", "deleted"]))
@click.option("--kind")
@click.option("--tenant")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="`next_cursor` of the page before.")
@_as_json
def resources_list(limit: int, as_json: bool, **filters: Any) -> None:
    """Resources, newest first."""
    from outbox import db, queries  # noqa: PLC0415

    with db.statement() as session:
        page = queries.list_resources(session, limit=limit, **filters)
    _show_page(page, ("id", "tenant", "kind", "backend", "name", "status", "created_at"), as_json)


@resources.command("show", epilog=_example("deprovisioner resources show 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52"))
@click.argument("resource_id", type=click.UUID)
@_as_json
def resources_show(resource_id: uuid.UUID, as_json: bool) -> None:
    """One resource and its jobs."""
    from outbox import db, queries  # noqa: PLC0415
    from outbox import resources as rows  # noqa: PLC0415

    with db.statement() as session:
        resource, _ = rows.find(session, resource_id)
        page = queries.list_jobs(session, resource_id=resource_id)
    if as_json:
        _print_json(vars(resource) | {"jobs": [vars(job) for job in page.items]})
        return
    _print_fields(vars(resource))
    click.echo("\njobs")
    _print_table([vars(job) for job in page.items], ("id", "kind", "state", "stuck_reason", "attempts", "last_error"))


@resources.command("delete", epilog=_example("deprovisioner resources delete 7d1f4c1e-… --reason 'ticket 811'"))
@click.argument("resource_id", type=click.UUID)
@click.option("--reason", help="Why; kept with the job.")
@_as_json
def resources_delete(resource_id: uuid.UUID, reason: str | None, as_json: bool) -> None:
    """Delete a resource, as the API's DELETE does: harmless when it was deleted before."""
    from outbox import db, doorbell  # noqa: PLC0415
    from outbox import jobs as transitions  # noqa: PLC0415

    with db.statement() as session:
        done = transitions.enqueue(session, resource_id, actor=_me(), reason=reason)
    doorbell.ring_now()
    if as_json:
        job = {"id": done.job.id, "state": done.job.state}
        _print_json({"ok": True, "already_deleted": not done.won, "resource": vars(done.resource), "job": job})
    else:
        click.echo(f"{'accepted' if done.won else 'already deleted'}: job {done.job.id} is {done.job.state}")


# -- tokens --------------------------------------------------------------------------------------------------------


@main.group()
def token() -> None:
    """Make, list and revoke bearer tokens of the API."""
    _operate()


@token.command("create", epilog=_example("deprovisioner token create --role tenant --tenant acme --name ci"))
@click.option("--role", type=click.Choice(["tenant", "operator"]), required=True)
@click.option("--tenant", help="Whose token; only with --role tenant.")
@click.option("--name", default="", help="To recognise it by; shown in events.")
@_as_json
def token_create(role: str, tenant: str | None, name: str, as_json: bool) -> None:
    """Make a token. It is shown this once: only its hash is kept."""
    from outbox import db, tokens  # noqa: PLC0415

    if (role == "tenant") != bool(tenant):
        raise click.UsageError("--role tenant needs --tenant; --role operator takes none")
    with db.statement() as session:
        made, secret = tokens.create(session, role=role, tenant=tenant, name=name)
    if as_json:
        _print_json(vars(made) | {"token": secret})
    else:
        click.echo(f"token {made.id}; it is shown this once:", err=True)
        click.echo(secret)


@token.command("list", epilog=_example("deprovisioner token list"))
@_as_json
def token_list(as_json: bool) -> None:
    """All tokens, without their secrets."""
    from outbox import db, tokens  # noqa: PLC0415

    with db.statement() as session:
        rows = [vars(row) for row in tokens.list_all(session)]
    _print_json({"items": rows, "next_cursor": None}) if as_json else _print_table(
        rows, ("id", "name", "role", "tenant", "created_at", "revoked_at")
    )


@token.command("revoke", epilog=_example("deprovisioner token revoke 3"))
@click.argument("token_id", type=click.IntRange(1, 2**63 - 1))
@_as_json
def token_revoke(token_id: int, as_json: bool) -> None:
    """Revoke a token; API processes that have just seen it forget it within two seconds."""
    from outbox import db, tokens  # noqa: PLC0415

    with db.statement() as session:
        revoked = tokens.revoke(session, token_id)
    _print_json(vars(revoked)) if as_json else click.echo(f"token {revoked.id} is revoked")


# -- how they speak --------------------------------------------------------------------------------------------------


def _operate() -> None:
    """For a person at a shell: where the environment names no database, a running `up` of this folder is meant."""
    env_file = settings.load().home / "env"
    if not os.environ.get("DEPROVISIONER_DATABASE_URL") and env_file.exists():
        from outbox.supervisor import read_env  # noqa: PLC0415

        for name, value in read_env(env_file).items():
            os.environ.setdefault(name, value)


def _me() -> str:
    return f"cli:{getpass.getuser()}"


def _show_page(page: Any, columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        _print_json({"items": [vars(row) for row in page.items], "next_cursor": page.next_cursor})
        return
    _print_table([vars(row) for row in page.items], columns)
    if page.next_cursor:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=_plain, indent=None if not sys.stdout.isatty() else 2))


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(f"no JSON for {type(value)}")


def _print_fields(fields: dict[str, Any]) -> None:
    width = max(map(len, fields))
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {_cell(value)}")


def _print_table(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    table = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *table, strict=True)]
    for line in ([*columns], *table):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if not table:
        click.echo("(none)")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps(value, default=_plain) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
