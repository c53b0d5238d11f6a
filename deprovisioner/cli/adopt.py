"""`deprovisioner adopt`: put many objects that exist under management."""

from pathlib import Path
from typing import Any

import click

from deprovisioner.cli.operations import digest_option, follow, operations_, say_how
from deprovisioner.cli.shell import (
    WORDS,
    as_json_option,
    example,
    main,
    me,
    operate,
    print_json,
    print_table,
)
from outbox.states import OperationState

SHOWN = 20  # as many as an operator reads one by one
WRONG = ("line", "object", "code", "what", "mend")
COLUMNS = ("line", "object", "name", "outcome", "job_id", "code", "what", "mend")


@main.command(
    "adopt",
    epilog=example(
        "deprovisioner adopt --backend pg-main --from databases.csv --tenant acme",
        "deprovisioner adopt --backend pg-main --preview 7 --digest 3000-3f0c… --rate 50",
    ),
)
@click.option("--backend", type=WORDS, required=True)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A list of objects: .csv with a header, or .jsonl.",
)
@click.option("--tenant", type=WORDS, help="Whose they are, where the list does not say it.")
@click.option("--reason", type=WORDS, help="Why; stored with the operation. Without it: the list's name.")
@click.option("--dry-run", is_flag=True, help="Only have them inspected, as without --digest.")
@click.option("--preview", type=click.IntRange(1, 2**63 - 1), help="The dry run whose objects are adopted.")
@digest_option
@click.option("--rate", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many a second.")
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def adopt(
    backend: str,
    source: Path | None,
    tenant: str | None,
    reason: str | None,
    dry_run: bool,
    preview: int | None,
    digest: str | None,
    rate: int,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Adopt the objects of a list: each becomes a resource, and a DELETE of it will destroy its object.

    With --from it is a dry run: workers inspect each object and change nothing, and it prints the command that adopts
    exactly those that can be adopted. The same command again goes on with a dry run that is under way. A column of the
    list is name, tenant, external_id, labels, protected, or a field of the kind's manifest, such as database and role.
    """
    from outbox import actions, adoptions, db

    operate()
    if (source is None) == (preview is None) or (preview is None) != (digest is None):
        raise click.UsageError("give --from for the dry run, or --preview and --digest, which it prints")
    if source is not None:
        from deprovisioner.cli.lists import read

        objects = adoptions.check(backend, read(source, adoptions.kind_of(backend), tenant=tenant))
        with db.transaction() as session:
            begun = actions.preview_adopt(session, me(), backend, objects, reason=reason or f"adopt {source.name}")
        _watch_preview(begun, reason=reason or f"adopt {source.name}", rate=rate, no_wait=no_wait, as_json=as_json)
        return
    if dry_run:
        raise click.UsageError("--dry-run goes with --from")
    assert preview is not None  # noqa: S101 - see above
    assert digest is not None  # noqa: S101
    with db.transaction() as session:
        begun = actions.begin_adopt(
            session, me(), preview, reason=reason or f"preview {preview}", digest=digest, rate=rate, backend=backend
        )
    try:
        follow(begun, wait=not no_wait, as_json=as_json)
    finally:
        if not (no_wait or as_json):
            _tell_wrong(begun.id)


def _watch_preview(begun: Any, *, reason: str, rate: int, no_wait: bool, as_json: bool) -> None:
    from deprovisioner.cli.operations import watch
    from outbox import actions, db, queries

    if no_wait:
        follow(begun, wait=False, as_json=as_json)
        return
    click.echo(f"operation {begun.id} inspects {begun.total} objects; Ctrl-C leaves it running", err=True)
    try:
        watch(begun)
    except KeyboardInterrupt:
        click.echo(f"\nit goes on; run the same command again, or see `operations show {begun.id}`", err=True)
        return
    with db.statement() as session:
        seen = actions.previewed_adopt(session, me(), begun.id)
        ended = queries.operation(session, begun.id)[0]
    if as_json:
        print_json(vars(ended) | vars(seen) | {"objects": [vars(one) for one in _all(begun.id)]})
    else:
        click.echo(f"adoptable: {seen.adoptable}; refused: {seen.refused}")
        _tell_wrong(begun.id)
        if seen.adoptable and seen.digest:
            said = ("adopt", "--backend", ended.filter["backend"], "--preview", str(begun.id), "--reason", reason)
            say_how(f"adopt exactly these {seen.adoptable}", seen, *said, "--rate", str(rate))
    if ended.state is OperationState.STOPPED or not seen.adoptable:
        raise SystemExit(1)


def _all(operation_id: int, *, wrong: bool = False) -> "list[Any]":
    from outbox import db, queries

    found: list[Any] = []
    cursor = None
    while True:
        with db.statement() as session:
            page = queries.list_adoptions(session, operation_id, wrong=wrong, cursor=cursor, limit=1000)
        found += page.items
        if (cursor := page.next_cursor) is None:
            return found


def _tell_wrong(operation_id: int) -> None:
    """The first objects that need a person, and what each needs."""
    from outbox import db, queries

    with db.statement() as session:
        page = queries.list_adoptions(session, operation_id, wrong=True, limit=SHOWN)
    if page.items:
        click.echo()
        print_table([row for one in page.items for row in _described(one)], WRONG)
    if page.next_cursor:
        click.echo(f"and more: deprovisioner operations objects {operation_id} --wrong")


def _described(one: Any) -> list[dict[str, Any]]:
    """A row for each finding; of an object without one: what became of it."""
    from outbox import adoptions

    names = adoptions.named(one.kind, one.manifest)
    about = {
        "line": one.line,
        "object": " ".join(f"{field}={value}" for field, value in names.items()),
        "name": one.name,
        "outcome": one.outcome,
        "job_id": one.job_id,
    }
    found = one.findings or [{"code": one.outcome, "what": one.last_error, "mend": None}]
    return [
        about | {"code": finding["code"], "what": finding["what"], "mend": finding["mend"] or None} for finding in found
    ]


@operations_.command("objects", epilog=example("deprovisioner operations objects 7 --wrong"))
@click.argument("operation_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--wrong", is_flag=True, help="Only those that need a person.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def operations_objects(operation_id: int, wrong: bool, limit: int, cursor: str | None, as_json: bool) -> None:
    """The objects of an adoption or of its dry run: what a worker found, and what became of each."""
    from outbox import db, queries

    with db.statement() as session:
        operation, _ = queries.operation(session, operation_id)
        page = queries.list_adoptions(session, operation_id, wrong=wrong, cursor=cursor, limit=limit)
    if as_json:
        items = [vars(one) for one in page.items]
        print_json({"items": items, "next_cursor": page.next_cursor, "digest": operation.digest})
        return
    print_table([row for one in page.items for row in _described(one)], WRONG if wrong else COLUMNS, cut=not wrong)
    if page.next_cursor:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)
