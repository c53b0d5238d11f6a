"""What people did beside jobs, as a person at a shell reads it."""

import getpass
import json

from sqlalchemy import Connection, text

from outbox import holds, resources
from outbox.states import HoldScope
from tests.support.factories import a_resource
from tests.support.processes import shell


def test_an_operator_at_a_shell_reads_who_did_what(db: Connection, env: dict[str, str]) -> None:
    me = f"cli:{getpass.getuser()}"
    assert shell(env, "audit", "acts").stdout.splitlines()[-1] == "(none)"
    held = json.loads(shell(env, "hold", "set", "--global", "--json").stdout)
    shell(env, "hold", "release", str(held["id"]), "--reason", "disk was made larger")
    made = json.loads(shell(env, "token", "create", "--role", "operator", "--name", "ann", "--json").stdout)
    shell(env, "token", "revoke", str(made["id"]), "--reason", "it was in a log")
    a_resource(db, tenant="globex")
    offboard = ("tenants", "offboard", "globex", "--reason", "left")
    digest = json.loads(shell(env, *offboard, "--json").stdout)["digest"]
    shell(env, *offboard, "--expect", "1", "--digest", digest, "--no-wait")
    begun = db.execute(text("SELECT id FROM operations")).scalar_one()
    shell(env, "operations", "stop", str(begun), "--reason", "the wrong tenant")

    told = json.loads(shell(env, "audit", "acts", "--json").stdout)
    assert [(act["event"], act["actor"], act["reason"]) for act in told["items"]] == [
        ("operation_stopped", me, "the wrong tenant"),
        ("operation_begun", me, "left"),
        ("token_revoked", me, "it was in a log"),
        ("token_created", me, None),
        ("hold_released", me, "disk was made larger"),
        ("hold_engaged", me, "kill switch"),
    ]
    assert told["items"][0]["detail"] == {"operation": begun, "kind": "offboard", "total": 1, "left_alone": 1}
    assert made["token"] not in str(told)
    table = shell(env, "audit", "acts").stdout.splitlines()
    assert table[1].endswith(f"the wrong tenant      kind offboard, total 1, operation {begun}, left_alone 1"), table
    assert table[-1].endswith(f"kill switch           hold {held['id']}, cause operator, scope global"), table


def test_acts_are_read_page_by_page_and_since_a_time(db: Connection, env: dict[str, str]) -> None:
    for n in range(5):
        holds.engage(db, HoldScope.GLOBAL, None, actor="op", reason=f"n{n}")
    seen, cursor = [], []
    while len(cursor) < 3:
        page = json.loads(shell(env, "audit", "acts", "--limit", "2", "--json", *cursor[-1:]).stdout)
        seen += [act["reason"] for act in page["items"]]
        cursor.append(f"--cursor={page['next_cursor']}")
    assert (seen, cursor[-1]) == (["n4", "n3", "n2", "n1", "n0"], "--cursor=None")
    middle = db.execute(text("SELECT at FROM events WHERE reason = 'n3'")).scalar_one()
    recent = json.loads(shell(env, "audit", "acts", "--json", "--since", middle.isoformat()).stdout)["items"]
    assert [act["reason"] for act in recent] == ["n4", "n3"]
    assert len(json.loads(shell(env, "audit", "acts", "--json", "--since", "1h").stdout)["items"]) == 5
    assert json.loads(shell(env, "audit", "acts", "--json", "--since", "0s").stdout)["items"] == []
    typed = shell(env, "audit", "acts", "--cursor", "mistyped")
    assert (typed.returncode, "start again without" in typed.stderr) == (1, True)


def test_a_resource_is_shown_with_who_changed_what_of_it(db: Connection, env: dict[str, str]) -> None:
    resource, other = a_resource(db, protected=True), a_resource(db)
    assert "changes" not in shell(env, "resources", "show", str(resource)).stdout
    resources.change(db, resource, changes={"protected": False, "grace_seconds": 60}, actor="token:1:ci")
    resources.change(db, other, changes={"protected": True}, actor="other")
    shown = shell(env, "resources", "show", str(resource)).stdout
    assert shown.splitlines()[-1].endswith("token:1:ci  protected: True to False, grace_seconds: - to 60"), shown
    (change,) = json.loads(shell(env, "resources", "show", str(resource), "--json").stdout)["changes"]
    assert (change["actor"], change["detail"]["new"]) == ("token:1:ci", {"protected": False, "grace_seconds": 60})
