"""Recoveries over HTTP: shown to operators, and decided by no one."""

import httpx
import pytest
from sqlalchemy import Connection

from tests.support.api import problem
from tests.support.factories import a_job
from tests.support.processes import System, client
from tests.support.recoveries import Places, rewind, still_held, surveyed


def test_the_state_and_the_last_survey_are_shown(system: System, db: Connection, operator: str) -> None:
    id = a_job(db)
    with client(system.api(), operator) as api:
        assert api.get("/v1/recovery").json()["rewound"] is False
        rewind(db)
        survey = surveyed(Places())
        now = api.get("/v1/recovery").json()
        assert (now["rewound"], now["epoch"], now["reason"]) == (True, 1, "pg-main remembers event 9")
        assert (now["survey"]["digest"], now["survey"]["counts"]["teardowns"]) == (survey.digest, 1)
        assert now["survey"]["samples"]["teardowns"][0]["job_id"] == id


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_is_decided_over_http(system: System, db: Connection, operator: str, method: str) -> None:
    with client(system.api(), operator) as api:
        assert api.request(method, "/v1/recovery", json={"digest": "0-" + "0" * 64}).status_code == 405
        rewind(db)
        assert api.request(method, "/v1/recovery").status_code in (405, 503)
        assert still_held(db)


def test_a_tenant_sees_nothing_of_it(acme: httpx.Client) -> None:
    problem(acme.get("/v1/recovery"), 403, "forbidden")
