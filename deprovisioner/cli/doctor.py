"""`deprovisioner doctor`: check the invariants."""

import re
from typing import Any

import click

from deprovisioner.cli.shell import as_json_option, cell, example, main, operate, print_json


@main.command(
    epilog=example("deprovisioner doctor", "deprovisioner doctor --json | jq '.checks[] | select(.count > 0)'")
)
@as_json_option
def doctor(as_json: bool) -> None:
    """Check every invariant of this installation. Only reads. Exit code 1 when a check is broken or cannot run."""
    operate()
    import migrations
    from outbox import db
    from outbox.doctor import CHECKS, examine

    with db.snapshot() as session:
        found = {finding.check.code: finding for finding in examine(session, head=migrations.head())}
    ok = not any(finding.status != "warning" for finding in found.values())
    if as_json:
        print_json({"ok": ok, "checks": [_checked(check, found.get(check.code)) for check in CHECKS]})
    else:
        for check in CHECKS:
            _show_checked(**_checked(check, found.get(check.code)))
        click.echo(f"\n{_summary(len(CHECKS), [finding.status for finding in found.values()])}")
    if not ok:
        raise SystemExit(1)


def _summary(checks: int, found: list[str]) -> str:
    """The last line: `23 checks: 1 broken, 2 warnings`."""
    broken, warnings, unchecked = (found.count(status) for status in ("broken", "warning", "unchecked"))
    said = [f"{broken} broken"] * (broken > 0) + [f"{unchecked} unchecked"] * (unchecked > 0)
    said += [f"{warnings} warning{'s' * (warnings > 1)}"] * (warnings > 0)
    return f"{checks} checks: {', '.join(said) or 'all ok'}"


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
        click.echo(f"           {subject} {row['id']}  since {cell(row['since'])}  {row['note'] or ''}".rstrip())
    if count > len(sample):
        click.echo(f"           and {count - len(sample)} more")
    if sample:  # the commands, as they can be typed for the first of them
        do = re.sub(rf"({subject}s? \w+) (ID|NAME)\b", rf"\g<1> {sample[0]['id']}", do)
    click.echo(f"           what to do: {do}")
