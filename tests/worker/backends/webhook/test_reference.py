"""The reference provisioner itself, asked as any program would ask it: what its README promises."""

import datetime as dt
import json
import uuid
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Signer

from tests.support.provisioners import SECRET, Served


def post(served: Served, verb: str, body: dict[str, Any], *, secret: str = SECRET, path: str = "", ago: int = 0) -> Any:
    """A signed request; the answer's status."""
    content, now = json.dumps({"verb": verb, **body}), dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago)
    signed = {"webhook-id": "1", "webhook-timestamp": str(int(now.timestamp()))}
    signed["webhook-signature"] = Signer(secret).sign("1", now, content)
    return httpx.post(f"{served.url}/{path or verb}", content=content, headers=signed).status_code


def said(manifest: dict[str, Any], key: str, *, job: int = 7, fence: int = 1) -> dict[str, Any]:
    return {"manifest": manifest, "generation": manifest["generation"], "key": key, "job": job, "fence": fence}


def test_a_repeated_key_does_nothing_twice_and_another_verb_between_makes_it_new(served: Served) -> None:
    manifest = served.marked()
    for verb, key in (("quarantine", "7-q"), ("quarantine", "7-q"), ("release", "7-r"), ("quarantine", "7-q")):
        assert post(served, verb, said(manifest, key)) == 200
    assert served.effects() == ["quarantine", "release", "quarantine"]
    assert [post(served, "deprovision", said(manifest, "7-d")) for _ in range(2)] == [200, 404]
    assert served.effects()[3:] == ["deprovision"]


def test_an_attempt_that_is_not_the_latest_is_refused(served: Served) -> None:
    manifest = served.marked()
    assert post(served, "quarantine", said(manifest, "8-q", job=8, fence=1)) == 200
    assert post(served, "release", said(manifest, "7-r", job=7, fence=9)) == 409
    assert post(served, "release", said(manifest, "9-r", job=9, fence=1)) == 200


def test_another_generation_s_request_is_refused(served: Served) -> None:
    manifest = served.marked() | {"generation": str(uuid.uuid4())}
    for verb in ("provision", "adopt", "quarantine", "release", "deprovision", "unmark"):
        assert post(served, verb, said(manifest, "k") | {"credentials": {"password": "p"}}) == 409
    assert served.effects() == []


@pytest.mark.parametrize(
    "wrong", [{"secret": "whsec_" + "QUJD" * 10}, {"ago": 600}, {"ago": -600}], ids=["secret", "old", "of the future"]
)
def test_a_request_that_is_not_signed_now_with_the_secret_is_refused(served: Served, wrong: dict[str, Any]) -> None:
    manifest = served.marked()
    assert post(served, "deprovision", said(manifest, "k"), **wrong) == 401
    assert httpx.post(f"{served.url}/deprovision", json=said(manifest, "k")).status_code == 401
    assert httpx.get(served.url).status_code == 401
    assert served.effects() == []


def test_a_signature_is_good_for_its_own_verb_alone(served: Served) -> None:
    manifest = served.marked()
    assert post(served, "inspect", said(manifest, "k"), path="deprovision") == 501
    assert served.effects() == []


def test_a_path_that_is_not_there_is_no_404(served: Served) -> None:
    assert post(served, "inspect", said(served.marked(), "k"), path="v2/inspect") == 501
