"""`deprovisioner resources`: read, delete, restore, purge and release resources."""

import uuid
from typing import TYPE_CHECKING, Any

import click

from deprovisioner.cli.decisions import operator_of, show_proposal, token_option
from deprovisioner.cli.shell import (
    SPAN,
    WORDS,
    Choice,
    as_json_option,
    cell,
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
from outbox.errors import BadRequest
from outbox.states import JobState, ResourceStatus, SnapshotPolicy, Step

if TYPE_CHECKING:
    from outbox.rows import Resource


class _Label(click.ParamType[tuple[str, str]]):
    """A label of a resource."""

    name = "key:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """`team:payments` as its key and its value."""
        from outbox import labels

        if isinstance(value, tuple):
            return value
        try:
            return labels.pair(value)
        except BadRequest as error:
            self.fail(str(error).partition(": ")[2], param, ctx)


@main.group()
def resources() -> None:
    """Read, delete, restore, purge and release resources."""
    operate()


@resources.command("list", epilog=example("deprovisioner resources list --status deleting --tenant acme"))
@click.option("--status", type=Choice(ResourceStatus))
@click.option("--kind", type=WORDS)
@click.option("--tenant", type=WORDS)
@click.option("--backend", type=WORDS)
@click.option("--name", type=WORDS)
@click.option("--label", "labels", type=_Label(), multiple=True, help="key:value; of several, all must fit.")
@click.option("--external-id", type=WORDS)
@click.option("--adopted/--not-adopted", default=None, help="Whether the object was there before its resource.")
@click.option("--protected/--not-protected", default=None)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def resources_list(limit: int, cursor: str | None, as_json: bool, **filters: Any) -> None:
    """Resources, newest first."""
    from outbox import db, queries

    with db.statement() as session:
        wanted = queries.ResourceFilter(**filters)
        page = queries.with_steps(session, queries.list_resources(session, wanted, cursor=cursor, limit=limit))
        if not page.items:
            must_exist(session, kind=wanted.kind, tenant=wanted.tenant, backend=wanted.backend)
    if as_json:
        print_json({"items": [_fields(row) for row in page.items], "next_cursor": page.next_cursor})
        return
    columns = ("id", "tenant", "kind", "backend", "name", "status", "step", "purge_at", "created_at")
    show_page(page, columns, as_json=False)


def _fields(resource: "Resource") -> dict[str, Any]:
    """A resource as the API shows it."""
    from outbox import settings

    fields = dict(vars(resource))
    seconds = fields.pop("grace_seconds")
    return fields | {"grace": None if seconds is None else settings.spell(seconds)}


@resources.command("show", epilog=example("deprovisioner resources show 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52"))
@click.argument("resource_id", type=click.UUID)
@as_json_option
def resources_show(resource_id: uuid.UUID, as_json: bool) -> None:
    """One resource, its jobs, and who changed what of it."""
    from outbox import db, logins, queries

    with db.statement() as session:
        found = queries.Page([queries.resource(session, resource_id)], None)
        attempts = logins.of(session, resource_id)
        fields = _fields(queries.with_steps(session, found).items[0])
        page = queries.list_jobs(session, queries.JobFilter(resource_id=resource_id))
        changes = [vars(change) for change in queries.changes_of(session, resource_id)]
    if as_json:
        told = {"login_attempts": None if attempts is None else vars(attempts)}
        print_json(fields | told | {"jobs": [vars(job) for job in page.items], "changes": changes})
        return
    print_fields(fields | ({} if attempts is None else {"login_attempts": str(attempts)}))
    click.echo("\njobs")
    print_table(
        [vars(job) for job in page.items], ("id", "kind", "state", "step", "stuck_reason", "attempts", "last_error")
    )
    if changes:
        click.echo("\nchanges")
        print_table(
            ({**change, "changed": _changed(change["detail"])} for change in changes), ("at", "actor", "changed")
        )


def _changed(detail: dict[str, Any]) -> str:
    """What was and what is: `protected: True to False`."""
    old, new = detail["old"], detail["new"]
    return ", ".join(f"{name}: {cell(old[name])} to {cell(new[name])}" for name in new)


_id = click.argument("resource_id", type=click.UUID)
_why = click.option("--reason", type=WORDS, required=True, help="Why; stored with the job.")


@resources.command(
    "delete",
    epilog=example(
        "deprovisioner resources delete 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52 --reason 'ticket 811'",
        "deprovisioner resources delete 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52 --grace 0s --on-behalf-of 'jo of acme'",
    ),
)
@_id
@click.option("--grace", type=SPAN, help="How long it can be restored, such as 0s, 10m or 7d.")
@click.option("--snapshot", type=Choice(SnapshotPolicy), help="Whether a snapshot is taken first.")
@click.option("--reason", type=WORDS, help="Why; stored with the job.")
@click.option("--on-behalf-of", type=WORDS, help="Who asked you for it; stored with the job.")
@as_json_option
def resources_delete(
    resource_id: uuid.UUID,
    grace: int | None,
    snapshot: SnapshotPolicy | None,
    reason: str | None,
    on_behalf_of: str | None,
    as_json: bool,
) -> None:
    """Delete a resource, as the API's DELETE does; harmless when it was deleted before."""
    from outbox import actions, advice, db, queries

    wanted = actions.wanted_delete(
        me(), resource_id, reason=reason, on_behalf_of=on_behalf_of, grace_seconds=grace, snapshot=snapshot
    )
    done = actions.delete(edge(), wanted)
    if as_json:
        job = {"id": done.job.id, "state": done.job.state}
        print_json({"ok": True, "already_deleted": not done.won, "resource": _fields(done.resource), "job": job})
        return
    before = "deleted" if done.resource.status is ResourceStatus.DELETED else "accepted before"
    more = f": `deprovisioner jobs show {done.job.id}`" if done.job.state is JobState.STUCK else ""
    click.echo(f"{'accepted' if done.won else before}; job {done.job.id} is {done.job.state}{more}")
    if done.job.finished_at is None:
        if done.job.step not in (None, Step.DESTROY):
            click.echo(
                f"nothing is destroyed before {cell(done.resource.purge_at)}; to take it back, or destroy it now:"
            )
            click.echo(f"  {advice.to_restore(resource_id)}\n  {advice.to_purge(resource_id)}")
        with db.statement() as session:
            for hold in queries.holds_over(session, done.job.id):
                click.echo(f"it does not start while there is {hold}")


@resources.command(
    "restore", epilog=example("deprovisioner resources restore 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52 --reason mistake")
)
@_id
@_why
@as_json_option
def resources_restore(resource_id: uuid.UUID, reason: str, as_json: bool) -> None:
    """Give a deleted resource back, until its destruction starts; harmless when it is active."""
    from outbox import actions

    done = actions.restore(edge(), me(), resource_id, reason=reason)
    if as_json:
        print_json({"resource": _fields(done.resource), "job": done.job and vars(done.job)})
        return
    is_now = f"it is {done.resource.status}"
    click.echo(is_now if done.job is None else f"{is_now}; job {done.job.id} is {done.job.state}")


@resources.command(
    "release", epilog=example("deprovisioner resources release 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52 --reason 'sold'")
)
@_id
@_why
@as_json_option
def resources_release(resource_id: uuid.UUID, reason: str, as_json: bool) -> None:
    """Take an active resource out of management: its object stays as it is, but for our mark."""
    from outbox import actions

    done = actions.release_resource(edge(), me(), resource_id, reason=reason)
    if as_json:
        print_json({"resource": _fields(done.resource), "job": vars(done.job)})
    else:
        click.echo(f"it is {done.resource.status}; job {done.job.id} is {done.job.state}")


@resources.command(
    "purge",
    epilog=example(
        "deprovisioner resources purge 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52 --reason 'the customer wants it gone'"
    ),
)
@click.argument("resource_id", type=click.UUID, required=False)
@click.option("--job", "job_id", type=click.IntRange(1, 2**63 - 1), help="The teardown, instead of its resource.")
@_why
@token_option
@as_json_option
def resources_purge(
    resource_id: uuid.UUID | None, job_id: int | None, reason: str, token: str | None, as_json: bool
) -> None:
    """Let the destruction of a deleted resource begin now, before its time."""
    from outbox import actions, db, queries

    if (resource_id is None) == (job_id is None):
        raise click.UsageError("say which: the id of a resource, or --job")
    if job_id is not None:
        with db.statement() as session:
            resource_id = queries.job_story(session, job_id).job.resource_id
    assert resource_id is not None  # noqa: S101 - one of the two is there
    who = operator_of(token) if token else me()
    done = actions.purge(edge(), who, resource_id, reason=reason)
    if isinstance(done, actions.Proposed):
        show_proposal(done, as_json)
    resource, job = done
    if as_json:
        print_json({"resource": _fields(resource), "job": vars(job)})
    else:
        click.echo(f"it is not kept any longer (purge_at {cell(resource.purge_at)}); job {job.id} is {job.state}")
