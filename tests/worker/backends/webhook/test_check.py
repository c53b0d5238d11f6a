"""What is not as it should be with a provisioner."""

import time
from email.utils import formatdate

import pytest
from werkzeug.serving import WSGIRequestHandler

from outbox.errors import OutOfService, Unavailable
from tests.support.provisioners import QUESTIONS, SECRET, VERBS, Served, says
from tests.worker.backends.webhook.conftest import Serve
from worker import backends, checks
from worker.backends.webhook import Webhook


def codes(dsn: str) -> list[str]:
    return [one.code for one in Webhook(dsn).check()]


def test_the_reference_provisioner_is_as_it_should_be_but_for_a_memory(served: Served) -> None:
    assert codes(served.dsn()) == []
    assert [one.code for one in backends.check(Webhook(served.dsn()))] == ["no_memory"]
    assert served.effects() == []


def test_what_is_not_declared_is_told_with_what_follows_from_it(serve: Serve) -> None:
    some = serve(verbs=("provision", "deprovision"))
    found = Webhook(some.dsn()).check()
    assert [one.code for one in found] == ["verb_missing"] * 4 + ["not_observable"]
    assert [word for word in ("adopt", "quarantine", "release", "objects") if f"`{word}`" in found[0].what] == ["adopt"]
    assert "`deprovision`: nothing can be torn down" in Webhook(serve(verbs=QUESTIONS).dsn()).check()[2].what


def test_a_signature_that_is_refused_is_told(served: Served) -> None:
    assert codes(f"{served.url}/?secret=whsec_{'QUJD' * 10}") == ["signature_refused"]


@pytest.mark.parametrize("verbs", [VERBS, tuple({*VERBS} - {"inspect"})], ids=["inspect", "no inspect"])
def test_a_provisioner_that_verifies_no_signature_is_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, verbs: tuple[str, ...]
) -> None:
    monkeypatch.setattr("examples.provisioner.app.Webhook.verify", lambda *_, **__: None)
    assert "signature_not_verified" in codes(serve(verbs=verbs).dsn())


@pytest.mark.parametrize(("seconds", "told"), [(-30, False), (-120, True), (120, True)])
def test_a_clock_that_is_off_is_told(served: Served, monkeypatch: pytest.MonkeyPatch, seconds: int, told: bool) -> None:
    off = formatdate(time.time() + seconds, usegmt=True)
    monkeypatch.setattr(WSGIRequestHandler, "date_time_string", lambda *_: off)
    assert ("clock_off" in codes(served.dsn())) == told


def test_what_cannot_be_asked_is_an_error_and_no_finding(served: Served) -> None:
    served.meddle = says("200 OK", b"<h1>Welcome</h1>")
    with pytest.raises(OutOfService):
        codes(served.dsn())
    served.stop()
    with pytest.raises(Unavailable):
        codes(served.dsn())
    assert "it cannot be reached (Connection refused)" in str(checks.check("hook", Webhook(served.dsn())).error)


def test_a_connection_that_is_not_encrypted_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.backends.webhook.endpoint.LOOPBACK", ())
    assert codes(f"{served.url}/?secret={SECRET}&insecure=true") == ["not_encrypted"]
