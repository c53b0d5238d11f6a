"""The provisioner as the verbs see it: what it can do, and what each of its answers means.

| answer | of a question | of an action |
|---|---|---|
| 2xx | the answer | done |
| 202 with a status URL | | under way: asked until it is done |
| 404, 410 | there is no such object | the same |
| 409 | the object is another's | Refused |
| 429, 503 | OutOfService, until `Retry-After` | the same; nothing was done |
| 401, 403 | OutOfService: it does not take the signature | the same |
| no connection | Unavailable | Unavailable: nothing was sent |
| anything else, no answer, an answer of somebody else | Unavailable or Transient | Transient: the outcome is unknown |

An answer counts only with the header X-Deprovisioner-Server that says the expected identity: a proxy, a page of another
service or a framework's "not found" is no answer.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import httpx

from outbox.errors import OutOfService, Refused, Transient, Unavailable
from outbox.rows import Json
from worker.backends import Still, always
from worker.backends.caller import caller
from worker.backends.fleet import tell
from worker.backends.webhook.client import SERVER_HEADER, Answer, Client, NoAnswer
from worker.backends.webhook.endpoint import Endpoint

PROTOCOL = 1
# What a capabilities document is believed for: a change of the provisioner is seen within this time.
DOCUMENT_SECONDS = 30.0
# Between two looks at a status URL that gives no `Retry-After`; twice as long each time.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
WORDS = 300  # characters of what a provisioner says of an error
ABSENT = (404, 410)
BUSY = (429, 503)
NOT_SIGNED = (401, 403)
AWAY = (408, 502, 504)


@dataclass(frozen=True)
class Document:
    """What a provisioner declares: who it is, the verbs it has, and whether a 202 comes with a status URL."""

    server: str
    verbs: frozenset[str]
    status_urls: bool

    @property
    def observable(self) -> bool:
        """Whether an attempt that follows a death finds out what became of the work."""
        return "inspect" in self.verbs or self.status_urls

    @property
    def cuts_off(self) -> bool:
        """Whether objects can be put into quarantine: that needs both ways."""
        return {"quarantine", "release"} <= self.verbs


class Provisioner:
    """One provisioner. `protected`: names that are never touched, whatever a manifest says."""

    def __init__(self, endpoint: Endpoint, protected: frozenset[str]) -> None:
        self.endpoint = endpoint
        self.protected = protected
        self.client = Client(endpoint)
        self._document: tuple[float, Document] | None = None
        self._not_before = 0.0  # it asked to be left alone until then (`time.monotonic()`)

    def document(self, *, fresh: bool = False) -> Document:
        """Its capabilities, as they were a moment ago. `fresh`: as they are now."""
        if self._document and not fresh and time.monotonic() - self._document[0] < DOCUMENT_SECONDS:
            return self._document[1]
        document = self._read(self._ask(self.endpoint.url, None))
        self._document = time.monotonic(), document
        return document

    def _read(self, answer: Answer) -> Document:
        body = answer.body or {}
        server, verbs = body.get("server"), body.get("verbs")
        if answer.status in (*NOT_SIGNED, *BUSY, *AWAY):
            _question_failed(answer)
        if (
            (answer.status, body.get("protocol")) != (200, PROTOCOL)
            or not (isinstance(server, str) and server.strip() and len(server) <= 200)
            or not (isinstance(verbs, list) and all(isinstance(verb, str) for verb in verbs))
            or answer.server != server
        ):
            raise OutOfService(
                f"no provisioner answers at {self.endpoint.url} (HTTP {answer.status}, and no capabilities document): "
                "check the address in the dsn"
            )
        if self.endpoint.server not in (None, server):
            raise OutOfService(
                f"this is the wrong server: provisioner {server!r} answers at {self.endpoint.url}, and the dsn wants "
                f"{self.endpoint.server!r}"
            )
        return Document(server, frozenset(verbs), body.get("status_urls") is True)

    # -- who may be asked for what -----------------------------------------------------------------------------

    def must_have(self, verb: str) -> Document:
        """Raise Refused where it does not declare this verb."""
        document = self.document()
        if verb not in document.verbs:
            raise Refused(f"provisioner {document.server!r} does not declare `{verb}`")
        return document

    def must_be_right(self, manifest: Json) -> Document:
        """Raise Refused where the manifest's object is on another server, or protected."""
        document = self.document()
        if why := self.elsewhere(manifest, document):
            raise Refused(why)
        if manifest["external"] in self.protected:
            raise Refused(f"{manifest['external']!r} is protected")
        return document

    def elsewhere(self, manifest: Json, document: Document) -> str:
        """Why this is not the manifest's server; empty where it is."""
        if manifest.get("server") in (None, document.server):
            return ""
        return f"this is the wrong server: provisioner {document.server!r}, and not {manifest['server']!r}"

    # -- questions ---------------------------------------------------------------------------------------------

    def ask(self, verb: str, body: Json) -> Answer:
        """An answer of 200, 404, 410 or 409, which changed nothing. Raises a BackendError for any other."""
        document = self.must_have(verb)
        answer = self._ask(self.endpoint.url.join(verb), {"verb": verb, **body})
        if answer.status not in (200, *ABSENT, 409):
            _question_failed(answer)
        if answer.server != document.server:
            raise OutOfService(_somebody_else(answer, document))
        if answer.status == 200 and answer.body is None:
            raise Transient(f"the provisioner's answer to `{verb}` is no JSON object")
        return answer

    def _ask(self, url: httpx.URL, body: Json | None) -> Answer:
        self._leave_alone()
        try:
            return self._noted(self.client.send(url, body))
        except NoAnswer as error:
            raise Unavailable(f"the provisioner at {self.endpoint.url}: {error}") from None

    # -- actions -----------------------------------------------------------------------------------------------

    def act(
        self,
        verb: str,
        manifest: Json,
        still: Still = always,
        *,
        fence: int | None = None,
        hidden: Iterable[str] = (),
        **more: object,
    ) -> Answer:
        """Have something done, and wait until it is; an answer of 2xx, 404 or 410. Raises a BackendError for any other.

        `hidden`: what no error may show, whatever the provisioner repeats. `more` goes into the body.
        """
        self.must_have(verb)
        document = self.must_be_right(manifest)
        key, by = _key(verb, manifest), caller()
        fence = fence if fence is not None or by is None else by.fence
        body = {"verb": verb, "generation": manifest.get("generation"), "manifest": manifest, "key": key}
        body |= {"job": by and by.job_id, "fence": fence, **more}
        until = time.monotonic() + self.endpoint.wait
        while True:
            self._leave_alone()
            still()
            answer = self._post(self.endpoint.url.join(verb), body, key, fence)
            # Where nobody could see afterwards that nothing was done, it is said now, while that is certain.
            if document.observable or not _nothing_done(answer, document) or time.monotonic() > until:
                break
            pause = answer.retry_after if isinstance(answer, Answer) else None
            time.sleep(max(pause or 0, 1.0))
        if isinstance(answer, Answer) and (answer.status, answer.server) == (202, document.server):
            answer = self._until_done(answer)
        return self._judged(verb, answer, document, hidden)

    def _post(self, url: httpx.URL, body: Json, key: str, fence: int | None) -> Answer | NoAnswer:
        try:
            return self.client.send(url, body, key, fence)
        except NoAnswer as error:
            return error

    def _until_done(self, accepted: Answer) -> Answer:
        """Ask the status URL until it has what the verb would have answered."""
        url, pause = _status_url(accepted), FIRST_PAUSE
        until = time.monotonic() + self.endpoint.wait
        answer: Answer | NoAnswer = accepted
        while (left := until - time.monotonic()) > 0:
            said = answer.retry_after if isinstance(answer, Answer) else None
            time.sleep(min(said or pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                answer = self.client.send(url, None)
            except NoAnswer as error:
                answer = error
                continue
            if answer.status in ABSENT:  # it proves nothing of the object
                raise Transient("the provisioner has forgotten the work that it accepted: the outcome is unknown")
            if answer.status not in (202, *BUSY, *AWAY):
                return answer
            _tell_progress(answer)
        raise Transient(
            f"the provisioner is still at work after {self.endpoint.wait} s (`wait` of the dsn); the next attempt asks "
            "again under the same Idempotency-Key"
        )

    def _judged(self, verb: str, answer: Answer | NoAnswer, document: Document, hidden: Iterable[str]) -> Answer:
        if isinstance(answer, NoAnswer):
            if answer.sent:
                raise Transient(f"the outcome of `{verb}` is unknown: the provisioner was asked, and {answer}")
            raise Unavailable(f"the provisioner at {self.endpoint.url}: {answer}")
        said = _said(answer, hidden)
        if answer.status in NOT_SIGNED:
            raise OutOfService(_not_signed(answer))
        if answer.status in BUSY:
            self._noted(answer)
            raise OutOfService(f"the provisioner does not work now (HTTP {answer.status}){said}")
        if answer.server != document.server:
            raise Transient(f"the outcome of `{verb}` is unknown: {_somebody_else(answer, document)}")
        if answer.status == 409:
            raise Refused(f"the provisioner refuses `{verb}` (HTTP 409){said}")
        if answer.status in ABSENT or 200 <= answer.status < 300:
            return answer
        raise Transient(f"the outcome of `{verb}` is unknown: the provisioner answered HTTP {answer.status}{said}")

    # -- pauses ------------------------------------------------------------------------------------------------

    def _noted(self, answer: Answer) -> Answer:
        if answer.status in BUSY and answer.retry_after:
            self._not_before = time.monotonic() + answer.retry_after
        return answer

    def _leave_alone(self) -> None:
        if (left := self._not_before - time.monotonic()) > 0:
            raise OutOfService(f"the provisioner asked not to be called for another {left:.0f} s (Retry-After)")


def _key(verb: str, manifest: Json) -> str:
    """`<job id>-<step>`, the same at each attempt; by the generation where no job asks."""
    step = {"deprovision": "destroy"}.get(verb, verb)
    by = caller()
    return f"{by.job_id if by else manifest.get('generation')}-{step}"


def _nothing_done(answer: Answer | NoAnswer, document: Document) -> bool:
    """Whether the provisioner itself says so, or never heard of it."""
    if isinstance(answer, NoAnswer):
        return not answer.sent
    return answer.status in BUSY and answer.server == document.server


def _status_url(accepted: Answer) -> httpx.URL:
    """Where to ask. A URL of another origin is not followed: it could lead into our own network."""
    said = accepted.location or (accepted.body or {}).get("status_url")
    if not isinstance(said, str) or not said:
        raise Transient("the outcome is unknown: the provisioner answered 202 without a status URL")
    try:
        url = accepted.url.join(said)
    except (httpx.InvalidURL, ValueError):
        raise Transient("the outcome is unknown: the status URL of the provisioner's 202 is none") from None
    if _origin(url) != _origin(accepted.url) or url.userinfo:
        raise Transient("the outcome is unknown: the status URL of the provisioner's 202 is of another origin")
    return url


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _question_failed(answer: Answer) -> NoReturn:
    said = _said(answer)
    if answer.status in NOT_SIGNED:
        raise OutOfService(_not_signed(answer))
    if answer.status in BUSY:
        raise OutOfService(f"the provisioner does not work now (HTTP {answer.status}){said}")
    if answer.status in AWAY or 300 <= answer.status < 400:
        raise Unavailable(f"no provisioner answers at {answer.url} (HTTP {answer.status}; redirects are not followed)")
    raise Transient(f"the provisioner answered HTTP {answer.status}{said}")


def _not_signed(answer: Answer) -> str:
    return (
        f"the provisioner does not take our signature (HTTP {answer.status}): `secret` of the dsn must be the "
        "provisioner's, and both clocks right"
    )


def _somebody_else(answer: Answer, document: Document) -> str:
    who = f"provisioner {answer.server[:200]!r}" if answer.server else f"no {SERVER_HEADER} header"
    return f"HTTP {answer.status} of {answer.url} is not of provisioner {document.server!r} ({who})"


def _said(answer: Answer, hidden: Iterable[str] = ()) -> str:
    """The provisioner's own words: `error` of its body, or `detail` of RFC 9457."""
    body = answer.body or {}
    said = body.get("error") or body.get("detail")
    if not isinstance(said, str):
        return ""
    for value in hidden:
        said = said.replace(value, "(secret)")
    return f": {said[:WORDS]}"


def _tell_progress(answer: Answer) -> None:
    body = answer.body or {}
    done, total, what = body.get("done"), body.get("total"), body.get("what", "steps")
    if type(done) is int and isinstance(what, str):
        tell(done, total if type(total) is int else None, what[:50])
