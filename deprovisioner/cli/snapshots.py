"""`deprovisioner snapshots`: what was kept of deleted resources. All but `list` needs what a worker has."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deprovisioner.cli.shell import (
    WORDS,
    as_json_option,
    edge,
    example,
    main,
    me,
    operate,
    print_json,
    print_table,
)
from outbox.errors import Conflict, DeprovisionerError, NotFound
from outbox.states import ResourceStatus

if TYPE_CHECKING:
    from outbox.snapshots import Snapshot
    from worker.snapshots.sealed import Unsealer

_COLUMNS = ("id", "resource_id", "tenant", "kind", "backend", "bytes", "verified_at", "expires_at", "removed_at")
_PIECE = 1 << 20
# A new resource is made in a second, where a worker has a free slot.
PROVISION_SECONDS = 300.0
_POLL_SECONDS = 0.2


@main.group()
def snapshots() -> None:
    """See, fetch and restore what was kept of deleted resources."""
    operate()


@snapshots.command("list", epilog=example("deprovisioner snapshots list --tenant acme"))
@click.option("--resource", type=click.UUID, help="Only those of this resource.")
@click.option("--tenant", type=WORDS)
@click.option("--all", "every", is_flag=True, help="Also those that were never verified, or are removed.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json_option
def snapshots_list(as_json: bool, **filters: Any) -> None:
    """Snapshots that were verified and are still there, newest first."""
    from outbox import db
    from outbox import snapshots as kept

    with db.statement() as session:
        found = kept.found(session, **filters)
    if as_json:
        print_json({"items": [vars(one) for one in found]})
    else:
        print_table([vars(one) for one in found], _COLUMNS, cut=True)


@snapshots.command("fetch", epilog=example("deprovisioner snapshots fetch 12 --to orders.dump"))
@click.argument("snapshot_id", type=int)
@click.option("--to", "path", type=click.Path(path_type=Path), required=True, help="A file that does not exist yet.")
def snapshots_fetch(snapshot_id: int, path: Path) -> None:
    """Decrypt a snapshot into a file: for kind `postgres` one that pg_restore reads.

    The file is not encrypted. Restore it as a role without rights: the restore runs the customer's code.
    """
    one = _kept(snapshot_id)
    try:
        with open(path, "xb", opener=_private) as file, _unsealed(one) as sealed:
            try:
                while piece := sealed.read(_PIECE):
                    file.write(piece)
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        raise Conflict(f"{path}: {error.strerror}") from error
    click.echo(f"{path}: {path.stat().st_size} bytes")


@snapshots.command("restore", epilog=example("deprovisioner snapshots restore 12 --name orders-again"))
@click.argument("snapshot_id", type=int)
@click.option("--name", type=WORDS, required=True, help="The name of the new resource.")
@click.option("--backend", type=WORDS, help="Where it is made; by default where the old one was.")
@as_json_option
def snapshots_restore(snapshot_id: int, name: str, backend: str | None, as_json: bool) -> None:
    """Make a new resource of the same tenant and kind, and fill it from a snapshot.

    A worker makes the resource, this process fills it. The new resource has new credentials.
    """
    from outbox import actions, db, queries, settings
    from worker.backends import always, build
    from worker.intake import Intake

    one = _kept(snapshot_id)
    where = backend or one.backend
    if where not in settings.backends():
        raise NotFound(f"there is no backend {where!r} in the backends file; --backend names another")
    built = Intake(build(settings.backends()[where], protected=frozenset()))
    new = actions.NewResource(tenant=one.tenant, kind=one.kind, backend=where, name=name, manifest=None)
    resource, _ = actions.create(edge(), me(), new)
    try:
        _wait_until_active(resource.id)
        with db.statement() as session:
            made = queries.resource(session, resource.id)
            opens = actions.show_credentials(session, me(), resource.id)
        assert made.manifest is not None  # noqa: S101 - it is active
        with _unsealed(one) as sealed:
            did = built.restore_snapshot(made.manifest, opens, sealed.read, always)
    except DeprovisionerError as error:
        raise Conflict(
            f"the new resource {resource.id} is not whole: {error}; when you no longer need it:"
            f" deprovisioner resources delete {resource.id}"
        ) from error
    if as_json:
        print_json({"snapshot": one.id, "resource": vars(made), "did": did})
    else:
        click.echo(f"resource {resource.id} is active and holds snapshot {one.id}")
        if said := did.get("restore_said"):
            click.echo(f"statements that the server refused: {said}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _kept(snapshot_id: int) -> "Snapshot":
    from outbox import db
    from outbox import snapshots as kept

    with db.statement() as session:
        one = kept.find(session, snapshot_id)
    if one.removed_at is not None:
        raise NotFound(f"snapshot {snapshot_id} was removed from its store at {one.removed_at:%Y-%m-%d %H:%M} UTC")
    if one.verified_at is None:
        raise Conflict(f"snapshot {snapshot_id} was never verified: it may not be whole")
    return one


@contextmanager
def _unsealed(one: "Snapshot") -> "Iterator[Unsealer]":
    from worker.snapshots import stores
    from worker.snapshots.sealed import Unsealer

    store, name = stores.at(one.location)
    with store.reading(name) as read:
        yield Unsealer(read)


def _wait_until_active(resource_id: uuid.UUID) -> None:
    from outbox import db, queries

    deadline = time.monotonic() + PROVISION_SECONDS
    while time.monotonic() < deadline:
        with db.statement() as session:
            now = queries.resource(session, resource_id)
        if now.status is ResourceStatus.ACTIVE:
            return
        if now.status is not ResourceStatus.PROVISIONING:
            raise Conflict(f"it is {now.status}")
        time.sleep(_POLL_SECONDS)
    raise Conflict(f"no worker has made it within {PROVISION_SECONDS:.0f} s")
