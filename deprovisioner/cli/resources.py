"""`deprovisioner resources`: read and delete resources."""

import uuid
from typing import Any

import click

from deprovisioner.cli.shell import (
    WORDS,
    Choice,
    as_json_option,
    edge,
    example,
    main,
    me,
    must_exist,
    operate,
    print_fields,
    print_json,
    print_table,
    show_page,
)
from outbox.states import ResourceStatus


@main.group()
def resources() -> None:
    """Read and delete resources."""
    operate()


@resources.command("list", epilog=example("deprovisioner resources list --status deleting --tenant acme"))
@click.option("--status", type=Choice(ResourceStatus))
@click.option("--kind", type=WORDS)
@click.option("--tenant", type=WORDS)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def resources_list(limit: int, as_json: bool, **filters: Any) -> None:
    """Resources, newest first."""
    from outbox import db, queries

    with db.statement() as session:
        page = queries.list_resources(session, limit=limit, **filters)
        if not page.items:
            must_exist(session, kind=filters["kind"], tenant=filters["tenant"])
    show_page(page, ("id", "tenant", "kind", "backend", "name", "status", "created_at"), as_json)


@resources.command("show", epilog=example("deprovisioner resources show 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52"))
@click.argument("resource_id", type=click.UUID)
@as_json_option
def resources_show(resource_id: uuid.UUID, as_json: bool) -> None:
    """One resource and its jobs."""
    from outbox import db, queries

    with db.statement() as session:
        resource = queries.resource(session, resource_id)
        page = queries.list_jobs(session, queries.JobFilter(resource_id=resource_id))
    if as_json:
        print_json(vars(resource) | {"jobs": [vars(job) for job in page.items]})
        return
    print_fields(vars(resource))
    click.echo("\njobs")
    print_table([vars(job) for job in page.items], ("id", "kind", "state", "stuck_reason", "attempts", "last_error"))


@resources.command("delete", epilog=example("deprovisioner resources delete 7d1f4c1e-… --reason 'ticket 811'"))
@click.argument("resource_id", type=click.UUID)
@click.option("--reason", type=WORDS, help="Why; stored with the job.")
@as_json_option
def resources_delete(resource_id: uuid.UUID, reason: str | None, as_json: bool) -> None:
    """Delete a resource, as the API's DELETE does; harmless when it was deleted before."""
    from outbox import actions, db, queries
    from outbox.states import JobState

    done = actions.delete(edge(), me(), resource_id, reason=reason)
    if as_json:
        job = {"id": done.job.id, "state": done.job.state}
        print_json({"ok": True, "already_deleted": not done.won, "resource": vars(done.resource), "job": job})
    else:
        before = "deleted" if done.resource.status is ResourceStatus.DELETED else "accepted before"
        more = f": `deprovisioner jobs show {done.job.id}`" if done.job.state is JobState.STUCK else ""
        click.echo(f"{'accepted' if done.won else before}; job {done.job.id} is {done.job.state}{more}")
        with db.statement() as session:
            for hold in queries.holds_over(session, done.job.id) if done.job.finished_at is None else ():
                click.echo(f"it does not start while there is {hold}")
