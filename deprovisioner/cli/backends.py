"""`deprovisioner backends`: the servers that hold the resources."""

from typing import Any

import click

from deprovisioner.cli.shell import WORDS, as_json_option, example, main, operate, print_json
from outbox.errors import NotFound


@main.group()
def backends() -> None:
    """See whether the backends are as they should be, and follow a server that moves."""
    operate()


@backends.command(
    "check", epilog=example("deprovisioner backends check", "deprovisioner backends check pg-main --json")
)
@click.argument("name", type=WORDS, required=False)
@as_json_option
def backends_check(name: str | None, as_json: bool) -> None:
    """Log in to each backend, or to NAME, as a worker does, and say what is not as it should be, and what mends it.

    Only reads. It needs the backends file and the addresses in it, as a worker does. Exit code 1 when something was
    found that can be mended, or a backend could not be asked. A `note` is of the kind, and no fault of the server.
    """
    from outbox import settings
    from worker import checks

    configured = settings.backends()
    if name is not None and name not in configured:
        raise NotFound(f"there is no backend {name!r} in the backends file; it has: {', '.join(sorted(configured))}")
    found = [checks.of(config) for key, config in sorted(configured.items()) if name in (None, key)]
    ok = not any(one.error or one.faults for one in found)
    if as_json:
        print_json({"ok": ok, "backends": [_as_json(one, configured[one.backend].kind) for one in found]})
    else:
        for one in found:
            _show(one)
    if not ok:
        raise SystemExit(1)


def _as_json(one: Any, kind: str) -> dict[str, Any]:
    findings = [vars(finding) for finding in one.findings]
    ok = not one.error and not one.faults
    return {"backend": one.backend, "kind": kind, "ok": ok, "findings": findings, "error": one.error}


def _show(one: Any) -> None:
    if one.error:
        click.echo(f"UNCHECKED  {one.backend}: {one.error}")
    elif not one.faults:
        click.echo(f"ok         {one.backend}")
    for finding in one.findings:
        label = "note " if finding.inherent else "found"
        click.echo(f"{label}      {one.backend} {finding.code}: {finding.what}")
        click.echo(f"           {finding.mend}")
