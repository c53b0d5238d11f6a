"""The API of a control database that went back in time: reads are answered, and everything else says what to do."""

import httpx
import pytest
from sqlalchemy import Connection

from outbox import rewinds
from tests.support.api import problem
from tests.support.factories import a_resource, a_stuck_job, status_of
from tests.support.processes import client
from tests.support.witness import eventually


def rewind(db: Connection) -> None:
    rewinds.here(db, ["pg-main"])
    assert rewinds.engage(db, actor="w", reason="pg-main remembers event 9")


@pytest.mark.parametrize("late", [False, True], ids=["known", "within the two seconds that a token is kept"])
def test_writes_are_503_rewound_and_reads_are_answered(
    acme: httpx.Client, operator: str, db: Connection, late: bool
) -> None:
    resource, stuck = a_resource(db), a_stuck_job(db)
    new = {"kind": "postgres", "backend": "pg-main", "name": "orders"}
    with client(str(acme.base_url), operator) as boss:
        assert acme.get(f"/v1/resources/{resource}").status_code == 200
        rewind(db)
        if not late:
            again = f"/v1/resources/{resource}/restore"  # of what is active: it writes nothing that a trigger refuses
            eventually(lambda: acme.post(again, json={"reason": "r"}).status_code == 503, 5, "the API knows")
        for answer in (acme.delete(f"/v1/resources/{resource}"), acme.post("/v1/resources", json=new)):
            assert problem(answer, 503, "rewound")
            assert "deprovisioner recover" in answer.json()["detail"]
        if not late:
            words = {"reason": "r", "fence": 1}
            for answer in (
                boss.post(f"/v1/jobs/{stuck}/redrive", json=words),
                boss.post("/v1/holds", json={"scope": "global", "reason": "r"}),
                acme.patch(f"/v1/resources/{resource}", json={"protected": True}),
                acme.post(f"/v1/resources/{resource}/restore", json={"reason": "r"}),
            ):
                assert problem(answer, 503, "rewound")
        assert acme.get(f"/v1/resources/{resource}").json()["status"] == "active"
        assert boss.get("/v1/jobs").status_code == 200
        holds = boss.get("/v1/holds").json()["items"]
        assert [hold["cause"] for hold in holds] == ["rewound"]
    assert status_of(db, resource) == "active"


def test_readiness_says_that_no_delete_is_accepted_and_why(acme: httpx.Client, db: Connection) -> None:
    assert acme.get("/readyz").status_code == 200
    rewind(db)
    answer = acme.get("/readyz")
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    assert "rewound" in answer.json()["database"]


def test_readiness_warns_of_a_backend_that_went_back(acme: httpx.Client, db: Connection) -> None:
    rewinds.went_back(db, "pg-main", "it remembers nothing")
    answer = acme.get("/readyz")
    assert (answer.status_code, "warnings" in answer.json()) == (200, True)


def test_a_token_that_is_unknown_is_401_as_ever(acme: httpx.Client, db: Connection) -> None:
    rewind(db)
    with client(str(acme.base_url), "no-such-token") as stranger:
        assert stranger.post("/v1/resources", json={}).status_code == 401
