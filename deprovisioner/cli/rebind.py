"""`deprovisioner backends rebind`: give objects whose server moved their new identity."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from deprovisioner.cli.backends import backends
from deprovisioner.cli.reconcile import _digest
from deprovisioner.cli.recover import _tell
from deprovisioner.cli.shell import WORDS, as_json_option, edge, example, me, print_json, print_table
from outbox.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from outbox.actions import Comparison, Move
    from outbox.moves import Item

# As many objects of a verdict as a person reads before the real run; --json has all.
SAMPLE = 20


@backends.command(
    "rebind",
    epilog=example(
        "deprovisioner backends rebind pg-main --dry-run",
        "deprovisioner backends rebind pg-main --digest 12-3f0c… --old-server 'shut down, disk wiped: CHG-42' "
        "--reason 'pg_upgrade to 18'",
        "deprovisioner backends rebind pg-eu --from pg-main --dry-run",
    ),
)
@click.argument("name", type=WORDS)
@click.option(
    "--from", "before", type=WORDS, metavar="OLD", help="The name that this backend had in the backends file."
)
@click.option("--dry-run", is_flag=True, help="Only compare, and print the digest.")
@click.option("--digest", callback=_digest, help="The digest that the dry run printed.")
@click.option(
    "--old-server",
    type=WORDS,
    help="How you know that the old server is gone, or closed for good; stored for each object. Needed where an object "
    "gets another identity: then the command that the dry run prints has it.",
)
@click.option("--reason", type=WORDS, help="Why; stored in the events. Needed with --digest.")
@as_json_option
def rebind(
    name: str,
    before: str | None,
    dry_run: bool,
    digest: str | None,
    old_server: str | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Compare every object of a backend with its new server, and give what is there whole its new identity.

    For a server that was upgraded with pg_upgrade, restored from a dump, or renamed in the backends file. An object is
    known by its mark, with the generation, and by its names, in all its parts. What differs or is missing is left as it
    is. While the real run works, no job of the backend starts. If it is killed, run the same command again. The command
    needs the backends file and the addresses in it, as a worker does.
    """
    from outbox import actions, settings
    from worker.survey import Places

    configured = settings.backends()
    if name not in configured:
        raise NotFound(f"there is no backend {name!r} in the backends file; it has: {', '.join(sorted(configured))}")
    if before in configured:
        raise click.UsageError(
            f"--from {before}: the backends file still has it; remove it there, and restart the workers"
        )
    if dry_run == (digest is not None):
        raise click.UsageError("give --dry-run, or --digest with the digest that the dry run printed")
    if digest is not None and reason is None:
        raise click.UsageError("say why with --reason: it is stored in the events")
    servers, move = Places({name: configured[name]}), actions.Move(name, configured[name].kind, before)
    try:
        if digest is None:
            _show(actions.compare(edge(), me(), servers, _tell, move), as_json)
            return
        done = actions.rebind(
            edge(), me(), servers, _tell, move, digest=digest, reason=reason or "", old_server=old_server
        )
    except BadRequest as error:
        raise click.UsageError(str(error)) from error
    now = done.comparison
    if as_json:
        print_json(_as_json(now) | {"rebound": len(now.changed), "memory_unwritten": done.unwritten or None})
    else:
        click.echo(f"rebound {len(now.changed)} objects of {name}; its jobs start again")
        if done.unwritten:
            click.echo(f"the server did not take our memory, and workers go on trying: {done.unwritten}")
        _show_left(now)
        _show_next(now)


def _as_json(seen: "Comparison") -> dict[str, Any]:
    return {
        "backend": seen.move.backend,
        "from": seen.move.before,
        "server": seen.server,
        "server_was": seen.server_was,
        "behind": seen.behind,
        "digest": seen.digest,
        "counts": {str(verdict): count for verdict, count in seen.counts.items()},
        "items": [_item(item) for item in seen.items],
    }


def _item(item: "Item") -> dict[str, Any]:
    return {
        "resource_id": item.id,
        "tenant": item.tenant,
        "name": item.name,
        "status": item.status,
        "verdict": item.verdict,
        "changes": _changes(item),
        "why": item.why,
    }


def _changes(item: "Item") -> dict[str, Any]:
    """What differs between the two manifests, by field: what it was, and what it will be."""
    now = item.now if item.now is not None else item.was
    return {name: [item.was.get(name), now[name]] for name in now if item.was.get(name) != now[name]}


_MEANS = {
    "rebind": "there, whole, and gets its new identity",
    "bound": "has this identity already",
    "unmade": "not made yet: its provision makes it on this server",
    "differs": "something else, or only a part: left as it is",
    "missing": "not on this server: left as it is",
}

_COPIES = """\
The old server, and every copy of it, has the same objects with the same marks. This command cannot see whether the
old server still runs. After the rebind, what is deleted is destroyed on this server alone. So make sure first that the
address of this backend is that of the server your customers use, and that the old one is gone."""
_NO_MEMORY = """\
This server remembers nothing of this installation, so nothing tells whether it is as new as the last job. Objects that
were destroyed after its data was copied are there again: `deprovisioner recover --backend {}` finds them."""
_BEHIND = """\
the server remembers less than workers wrote: it is older than the last job, as a dump is. Nothing starts on it before a
recovery has compared its objects:"""


def _show(seen: "Comparison", as_json: bool) -> None:
    command = _command(seen.move, seen)
    if as_json:
        print_json(_as_json(seen) | {"command": command})
        return
    click.echo(f"server now: {seen.server or ('(it tells none now)' if seen.server_was else '(it tells none)')}")
    click.echo(f"server when workers last wrote their memory: {seen.server_was or '(none known)'}\n")
    for verdict, count in seen.counts.items():
        click.echo(f"{verdict:<8} {count:>6}   {_MEANS[verdict]}")
    rewritten = seen.changed[:SAMPLE]
    if rewritten:
        click.echo("\nto be rewritten")
        rows = [
            {
                **_item(item),
                "changes": ", ".join(f"{field}: {was} to {now}" for field, (was, now) in _changes(item).items()),
            }
            for item in rewritten
        ]
        print_table(rows, ("resource_id", "tenant", "name", "status", "changes"))
        if len(seen.changed) > SAMPLE:
            click.echo(f"and {len(seen.changed) - SAMPLE} more (--json has all)")
    _show_left(seen)
    if seen.moved:
        click.echo(f"\n{_COPIES}")
    if seen.keeps_memory and not seen.remembers and seen.server_was:
        click.echo(f"\n{_NO_MEMORY.format(seen.move.backend)}")
    click.echo(f"\nnothing was changed. The real run:\n  deprovisioner {command}")
    _show_next(seen)


def _show_left(seen: "Comparison") -> None:
    left = [item for item in seen.items if item.now is None]
    if left:
        click.echo("\nleft as they are")
        print_table(map(_item, left[:SAMPLE]), ("verdict", "resource_id", "tenant", "name", "status", "why"))
        if len(left) > SAMPLE:
            click.echo(f"and {len(left) - SAMPLE} more (--json has all)")


def _show_next(seen: "Comparison") -> None:
    name = seen.move.backend
    click.echo("\nafter it, jobs that were refused for the old identity start again with:")
    click.echo(f"  deprovisioner jobs redrive-all --backend {name} --reason-was refused --reason …")
    if seen.behind:
        click.echo(f"{_BEHIND}\n  deprovisioner recover --backend {name}")


def _command(move: "Move", seen: "Comparison") -> str:
    """The command of the real run, with … in the place of what the person must say."""
    said = ["backends", "rebind", move.backend]
    if move.before:
        said += ["--from", move.before]
    said += ["--digest", seen.digest]
    if seen.moved:
        said += ["--old-server", "…"]
    return shlex.join([*said, "--reason", "…"]).replace("'", "")
