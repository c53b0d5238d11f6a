"""What is not as it should be with a provisioner: its signatures, its clock, what it does not declare."""

import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import replace

from standardwebhooks import Webhook as Signer

from outbox.errors import Unavailable
from outbox.rows import Json
from worker.backends import Finding
from worker.backends.webhook.client import CLOCK_TOLERANCE, Answer, Client, NoAnswer
from worker.backends.webhook.provisioner import NOT_SIGNED, Document, Provisioner

CLOCK_OFF = CLOCK_TOLERANCE / 5
# Without these, what becomes of a resource.
NEEDED = {
    "provision": "nothing can be provisioned",
    "adopt": "nothing can be adopted",
    "deprovision": "nothing can be torn down",
    "quarantine": "a deleted resource with a grace is not cut off: its job is stuck",
    "release": "a deleted resource with a grace is not cut off: its job is stuck",
    "objects": "what a lost row has left is found by hand, and no list contradicts a wrong 404",
}


def check(provisioner: Provisioner) -> list[Finding]:
    """See `worker.backends.check`; changes nothing. One request is signed wrongly, and must be refused."""
    try:
        answer = provisioner.client.send(provisioner.endpoint.url, None)
        if answer.status in NOT_SIGNED:
            return [*_clock(answer), _REFUSED]
        document = provisioner.document(fresh=True)
        return [*_clock(answer), *_declared(document), *_unverified(provisioner, document), *_open(provisioner)]
    except NoAnswer as error:
        raise Unavailable(f"the provisioner at {provisioner.endpoint.url}: {error}") from None


_REFUSED = Finding(
    "signature_refused",
    "the provisioner does not take our signature",
    "give both the same secret (`secret` of the dsn), and set both clocks",
)


def _clock(answer: Answer) -> Iterator[Finding]:
    if answer.date is None:
        return
    off = answer.date - dt.datetime.now(dt.UTC)
    if abs(off) > CLOCK_OFF:
        what = f"the provisioner's clock is {off.total_seconds():+.0f} s off ours; signatures are refused from 300 s on"
        yield Finding("clock_off", what, "set both clocks, by NTP")


def _declared(document: Document) -> Iterator[Finding]:
    for verb, why in NEEDED.items():
        if verb not in document.verbs:
            what = f"the provisioner does not declare `{verb}`: {why}"
            yield Finding("verb_missing", what, f"have it answer POST /{verb} (docs/backends.md), and declare it")
    if not document.observable:
        yield Finding(
            "not_observable",
            "the provisioner declares neither `inspect` nor status URLs: a teardown whose outcome is unknown is stuck",
            "have it answer POST /inspect (docs/backends.md), and declare it",
        )


def _unverified(provisioner: Provisioner, document: Document) -> Iterator[Finding]:
    """It must refuse another secret's signature, or anybody who reaches it can tear down."""
    forging = Client(replace(provisioner.endpoint, signers=(Signer(uuid.uuid4().bytes * 2),)))
    names = {"external": "nothing", "generation": str(uuid.uuid4()), "server": document.server}
    body: Json | None = {"verb": "inspect", "generation": names["generation"], "manifest": names}
    url = provisioner.endpoint.url
    if "inspect" in document.verbs:
        url = url.join("inspect")
    else:
        body = None
    if forging.send(url, body).status not in NOT_SIGNED:
        what = "the provisioner answers requests that are signed with another secret"
        yield Finding("signature_not_verified", what, "have it verify each request (Standard Webhooks), and answer 401")


def _open(provisioner: Provisioner) -> Iterator[Finding]:
    if not provisioner.endpoint.encrypted:
        yield Finding("not_encrypted", "credentials are sent unencrypted (http://)", "use https:// in the dsn")
