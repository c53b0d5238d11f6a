"""`deprovisioner reconcile`: compare the backends with the resources, and adopt or delete what no row knows."""

import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from deprovisioner.cli.shell import (
    WORDS,
    Choice,
    as_json_option,
    cell,
    edge,
    example,
    main,
    me,
    operate,
    print_json,
    print_table,
    show_page,
)
from outbox.errors import DeprovisionerError, NotFound, Rewound
from outbox.states import Difference

if TYPE_CHECKING:
    from outbox.actions import Done, ObjectFinding, Preview, Reconciliation
    from worker.reconcile import Ended

COLUMNS = ("id", "code", "backend", "what", "resource_id", "tenant", "size", "last_used_at", "found_at", "why")
# A worker adopts within a second, unless others keep it busy.
ADOPT_SECONDS = 60.0
_UNITS = ("B", "kB", "MB", "GB", "TB")


@main.group(
    invoke_without_command=True,
    epilog=example("deprovisioner reconcile", "deprovisioner reconcile --backend pg-main --unmarked --json"),
)
@click.option("--backend", type=WORDS, metavar="NAME", help="Only this backend; else each of the backends file.")
@click.option("--unmarked", is_flag=True, help="Find also what bears no mark of ours: what could be adopted.")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True, help="Findings that are shown.")
@as_json_option
@click.pass_context
def reconcile(context: click.Context, backend: str | None, unmarked: bool, limit: int, as_json: bool) -> None:
    """Compare each backend's objects with the resources here, both ways, and change nothing of either.

    Workers do this once a day. It needs the backends file and the addresses in it, as a worker does. What changed
    within the last hour is counted (`young`), and is no finding yet; what a job is at is none. Exit code 1 when
    something is found, other than unmarked objects, or when a backend could not be compared: then its last good
    findings stay, and are shown.
    """
    operate()
    if context.invoked_subcommand is not None:
        if backend or unmarked or as_json:
            raise click.UsageError(f"put the options behind `reconcile {context.invoked_subcommand}`")
        return
    from outbox import actions, db, settings
    from worker import reconcile as runs

    configured = settings.backends()
    if backend is not None and backend not in configured:
        raise NotFound(f"there is no backend {backend!r} in the backends file; it has: {', '.join(sorted(configured))}")
    ended = {}
    for name, config in sorted(configured.items()):
        if backend in (None, name):
            try:
                ended[name] = runs.of(config, actor=me().actor, unmarked=unmarked, tell=_tell)
            except Rewound:
                raise
            except DeprovisionerError as error:
                ended[name] = runs.Ended(str(error))
    with db.statement() as session:
        told = {one.backend: one for one in actions.reconciled(session, me())}
        page = actions.object_findings(session, me(), backend=backend, limit=limit)
        behind = actions.left_behind(session, me(), backend=backend)
    results = [_result(name, configured[name].kind, run, told.get(name)) for name, run in ended.items()]
    ok = all(one["ok"] for one in results)
    if as_json:
        found = [vars(one) for one in page.items]
        shown = {"ok": ok, "backends": results, "left_behind": behind, "findings": found}
        print_json(shown | {"next_cursor": page.next_cursor})
    else:
        for one in results:
            _show_result(one)
        _show_findings(page.items, page.next_cursor, behind)
    if not ok:
        raise SystemExit(1)


def _tell(words: str) -> None:
    """Progress goes to stderr: stdout may be JSON."""
    click.echo(words, err=True)


def _result(name: str, kind: str, run: "Ended", told: "Reconciliation | None") -> dict[str, Any]:
    known = vars(told) if told else {"backend": name, "found": {}, "ended_at": None}
    wrong = [code for code in known["found"] if code != Difference.UNMARKED]
    return known | {"kind": kind, "ok": not run.error and not wrong, "error": run.error, "young": run.young}


def _show_result(one: dict[str, Any]) -> None:
    found = ", ".join(f"{count} {code}" for code, count in sorted(one["found"].items())) or "no difference"
    if one["error"]:
        click.echo(f"ERROR  {one['backend']}: {one['error']}")
        click.echo(f"       its last good run: {cell(one['ended_at'])}, {found}")
        return
    label = "ok   " if one["ok"] else "found"
    click.echo(f"{label}  {one['backend']}: {one['objects']} objects, {one['resources']} resources: {found}")
    if one["young"]:
        told = "1 difference is" if one["young"] == 1 else f"{one['young']} differences are"
        click.echo(f"       {told} younger than an hour, and not told yet: run this again in an hour")
    if one["others"]:
        click.echo(
            f"       {one['others']} more objects bear a mark, and no row here knows them; other installations use "
            "this server too, and a mark does not say whose an object is: they are no findings"
        )


def _show_findings(items: "list[ObjectFinding]", cursor: str | None, behind: dict[str, int]) -> None:
    if items:
        click.echo()
        print_table([_row(one) for one in items], COLUMNS)
    if cursor:
        click.echo(f"more: deprovisioner reconcile list --cursor {cursor}")
    if behind["objects"]:
        unsized = f", {behind['unsized']} of unknown size" if behind["unsized"] else ""
        left = f"{behind['objects']} objects, {_sized(behind['bytes'])}{unsized}"
        click.echo(f"\nleft behind, with no resource that manages it: {left}")
    if behind["abandoned"]:
        click.echo(f"\nabandoned with servers that are gone: {behind['abandoned']} (`deprovisioner audit abandoned`)")


def _row(one: "ObjectFinding") -> dict[str, Any]:
    what = ", ".join(one.parts) or one.name
    return vars(one) | {"what": what, "size": None if one.size_bytes is None else _sized(one.size_bytes)}


def _sized(size: float) -> str:
    """Bytes, as a person reads them."""
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"


@reconcile.command("list", epilog=example("deprovisioner reconcile list --code survives --json"))
@click.option("--backend", type=WORDS, metavar="NAME", help="Only this backend's.")
@click.option("--code", type=Choice(Difference), help="Only these differences.")
@click.option("--all", "closed", is_flag=True, help="Also those that do not stand any more.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def reconcile_list(as_json: bool, **filters: Any) -> None:
    """What the last runs found, without a new one; the oldest first."""
    from outbox import actions, db

    with db.statement() as session:
        page = actions.object_findings(session, me(), **filters)
    show_page(page, (*COLUMNS, "closed_at", "adopted_as") if filters["closed"] else COLUMNS, as_json, describe=_row)


def _digest(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from outbox.actions import DIGEST

    if value is not None and not re.fullmatch(DIGEST, value):
        raise click.BadParameter(f"{value!r} is not a digest: copy all of the digest that the dry run printed")
    return value


def _decides(command: Any) -> Any:
    """The options of adopt and delete."""
    for decorate in (
        click.argument("ids", type=click.IntRange(1, 2**63 - 1), nargs=-1, required=True, metavar="ID…"),
        click.option("--tenant", type=WORDS, help="Whose the objects are. Needed for what no row knows."),
        click.option(
            "--name", type=WORDS, help="The resource's name; else the object's own on its server. For one ID."
        ),
        click.option("--reason", type=WORDS, help="Why; stored in the events. Needed with --digest."),
        click.option("--digest", callback=_digest, help="The digest that the dry run printed."),
        as_json_option,
    ):
        command = decorate(command)
    return command


@reconcile.command("adopt", epilog=example("deprovisioner reconcile adopt 7 8 --tenant acme"))
@_decides
def reconcile_adopt(**said: Any) -> None:
    """Make a resource of each object. Without --digest, only show what would be done.

    Exit code 1 where each is refused. A worker verifies each object, as with any adoption, before its resource is
    active.
    """
    _decide("adopt", **said)


@reconcile.command("delete", epilog=example("deprovisioner reconcile delete 7 --tenant acme"))
@_decides
def reconcile_delete(**said: Any) -> None:
    """Adopt each object, and delete the resource that it becomes. Without --digest, only show what would be done.

    It is a delete as any other, with the grace, the snapshot and the brake of its backend. It needs a worker.
    """
    _decide("delete", **said)


def _decide(
    does: str,
    ids: tuple[int, ...],
    tenant: str | None,
    name: str | None,
    reason: str | None,
    digest: str | None,
    as_json: bool,
) -> None:
    from outbox import actions, db

    if digest is None:
        with db.statement() as session:
            preview = actions.preview_findings(session, me(), does, ids, tenant=tenant, name=name)
        _show_preview(preview, ids, tenant, name, as_json)
        return
    if reason is None:
        raise click.UsageError("say why with --reason: it is stored in the events")
    done = actions.carry_out(
        edge(),
        me(),
        does,
        ids,
        digest=digest,
        reason=reason,
        tenant=tenant,
        name=name,
        seconds=ADOPT_SECONDS,
        tell=_tell,
    )
    _show_done(does, done, as_json)


def _show_preview(
    preview: "Preview", ids: tuple[int, ...], tenant: str | None, name: str | None, as_json: bool
) -> None:
    words = ["reconcile", preview.does, *map(str, ids), "--digest", preview.digest]
    for option, value in (("--tenant", tenant), ("--name", name)):
        words += [option, value] if value else []
    command = shlex.join([*words, "--reason", "…"]).replace("'…'", "…")
    nothing = all(one.refused for one in preview.items)
    if as_json:
        items = [vars(one) | {"finding": vars(one.finding)} for one in preview.items]
        print_json(
            {"does": preview.does, "items": items, "digest": preview.digest, "command": None if nothing else command}
        )
    else:
        rows = [
            _row(one.finding) | {"tenant": one.tenant, "name": one.name, "refused": one.refused}
            for one in preview.items
        ]
        print_table(rows, ("id", "code", "backend", "what", "tenant", "name", "size", "refused"))
        click.echo(
            f"\nnothing was changed, and there is nothing to {preview.does}: each is refused"
            if nothing
            else f"\nnothing was changed. To {preview.does} these, put your reason in the place of …:\n"
            f"  deprovisioner {command}"
        )
    if nothing:
        raise SystemExit(1)


def _show_done(does: str, done: "list[Done]", as_json: bool) -> None:
    if as_json:
        print_json({"does": does, "items": [vars(one) for one in done]})
    else:
        print_table([vars(one) for one in done], ("finding", "resource_id", "deleted", "said"))
    if any(one.said for one in done):
        raise SystemExit(1)
