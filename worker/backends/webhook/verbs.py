"""Plan, provision, adopt, inspect, quarantine, release, prove and teardown, in a provisioner's words."""

import secrets
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from outbox.errors import Refused, Transient
from outbox.kinds.webhook import KIND
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Plan, Same, Still
from worker.backends.caller import caller
from worker.backends.webhook.client import Answer
from worker.backends.webhook.provisioner import ABSENT, Document, Provisioner

LONGEST = 200  # characters of a name, as the kind's fields have it
SHORTEST_SECRET = 6  # characters of what is taken out of errors; a shorter one would take words apart
# What this thread was just told is gone. Only for provisioners that cannot be asked afterwards.
_torn = threading.local()


def plan(provisioner: Provisioner, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
    """A name from the resource's UUID, whole; and credentials of ours, or those that the provisioner plans."""
    document = provisioner.document()
    manifest = KIND.manifest(external=f"res_{resource_id.hex}", generation=str(generation), server=document.server)
    own = {"user": manifest["external"], "password": secrets.token_urlsafe(24)}
    if "plan" not in document.verbs:
        return Plan(manifest, own)
    answer = provisioner.ask("plan", {"generation": str(generation), "manifest": manifest, "credentials": own})
    planned = (answer.body or {}).get("credentials")
    if answer.status != 200 or not isinstance(planned, dict):
        raise Transient(f"the provisioner plans no credentials (HTTP {answer.status})")
    return Plan(manifest, planned)


def provision(provisioner: Provisioner, manifest: Json, credentials: Json) -> Json:
    """See the Protocol; the provisioner finds its own half-made object by the generation."""
    hidden = [value for value in _texts(credentials) if len(value) >= SHORTEST_SECRET]
    answer = provisioner.act("provision", manifest, hidden=hidden, credentials=credentials)
    if answer.status in ABSENT:
        raise Transient(f"the outcome of `provision` is unknown: the provisioner answered HTTP {answer.status}")
    return manifest


def adopt(provisioner: Provisioner, manifest: Json, generation: uuid.UUID) -> Json:
    """See the Protocol; it is the provisioner that marks its object with the generation."""
    document = provisioner.must_be_right(manifest)
    full = KIND.manifest(external=manifest["external"], generation=str(generation), server=document.server)
    if provisioner.act("adopt", full).status in ABSENT:
        raise Refused(f"there is no object {full['external']!r} to adopt")
    return full


def inspect(provisioner: Provisioner, manifest: Json) -> Observation:
    """See the Protocol. Without `inspect`, a job goes by what the provisioner said, and a person is told nothing."""
    document = provisioner.document()
    if "inspect" not in document.verbs:
        document = provisioner.document(fresh=True)  # nothing else shows that it can be reached
    if why := provisioner.elsewhere(manifest, document):
        return Different({"server": document.server}, why)
    if "inspect" not in document.verbs:
        return _not_inspected(manifest)
    answer = provisioner.ask("inspect", {"generation": manifest.get("generation"), "manifest": manifest})
    if answer.status == 409:
        return Different({"status": 409}, "the provisioner says that the object is not the one of this manifest")
    if answer.status not in ABSENT:
        return judge(manifest, answer.body or {})
    must_not_be_listed(provisioner, manifest, document)
    return Absent({"status": answer.status, "server": document.server})


def judge(manifest: Json, found: Json) -> Observation:
    """Whether what the provisioner found by name or generation is the manifest's object."""
    seen = shown(found)
    ours = seen["generation"] is not None and seen["generation"] == manifest.get("generation")
    if ours and seen["external"] == manifest["external"]:
        return Same(seen)
    why = f"object {seen['external']!r} bears generation {seen['generation']!r}, and not that of this manifest"
    return Different(seen, f"under another name: {why}" if ours else why, marked=ours)


def shown(found: Json) -> Json:
    """What is kept of an object: never all that the provisioner says of it, which may have secrets."""
    names = {name: found.get(name) for name in ("external", "generation")}
    bounded = {name: value[:LONGEST] if isinstance(value, str) else None for name, value in names.items()}
    return bounded | {"quarantined": found.get("quarantined") is True}


def must_not_be_listed(provisioner: Provisioner, manifest: Json, document: Document) -> None:
    """An absence that the provisioner's own list contradicts is none. Raises Transient."""
    if "objects" not in document.verbs:
        return
    answer = provisioner.ask("objects", {"generation": manifest.get("generation"), "cursor": None})
    items = (answer.body or {}).get("items")
    if not isinstance(items, list):
        raise Transient(f"the provisioner's answer to `objects` is no list (HTTP {answer.status})")
    wanted = {("external", manifest["external"]), ("generation", manifest.get("generation"))}
    for item in items:
        if isinstance(item, dict) and wanted & set((seen := shown(item)).items()):
            raise Transient(f"the provisioner says that the object is not there, and lists it: {seen}")


def quarantine(provisioner: Provisioner, manifest: Json, still: Still) -> None:
    """See the Protocol. An older attempt that comes later is refused by the provisioner, by job and fence."""
    if not provisioner.document().cuts_off:
        raise Refused(
            "this provisioner cannot cut an object off: it must declare `quarantine` and `release`. Else restore the "
            "resource, and delete it without a grace (`?grace=0s`; docs/backends.md)"
        )
    if provisioner.act("quarantine", manifest, still).status in ABSENT:
        raise Transient("the object is not there any more")


def release(provisioner: Provisioner, manifest: Json, still: Still) -> None:
    """See the Protocol. What this provisioner could never cut off is not cut off."""
    if not provisioner.document().cuts_off:
        return still()
    if provisioner.act("release", manifest, still).status in ABSENT:
        raise Transient("the object is not there any more")
    return None


def prove(provisioner: Provisioner, manifest: Json, credentials: Json | None) -> Json:
    """A login, where the provisioner declares `prove`; else that the object is there, and not cut off."""
    if "prove" not in provisioner.document().verbs:
        match inspect(provisioner, manifest):
            case Same(seen=seen) if not seen.get("quarantined"):
                return seen
            case other:
                raise Transient(f"it is not there, or still cut off, after its release: {other}")
    body = {"generation": manifest.get("generation"), "manifest": manifest, "credentials": credentials}
    answer = provisioner.ask("prove", body)
    if answer.status != 200 or (answer.body or {}).get("opened") is not True:
        raise Transient(f"the provisioner says that no login works (HTTP {answer.status})")
    return {"opened": True}


def teardown(provisioner: Provisioner, manifest: Json, fence: int) -> Json:
    """See the Protocol."""
    answer = provisioner.act("deprovision", manifest, fence=fence)
    if "inspect" not in provisioner.document().verbs:
        _torn.by = _of(manifest, answer)
    did = (answer.body or {}).get("did")
    return {"status": answer.status, "did": did if isinstance(did, dict) else {}}


def _of(manifest: Json, answer: Answer) -> tuple[Any, ...]:
    return manifest.get("generation"), caller(), answer.status


def _not_inspected(manifest: Json) -> Observation:
    by = caller()
    if by is None:
        raise Refused("this provisioner does not declare `inspect`: look at the object with its own tools")
    generation, torn_by, status = getattr(_torn, "by", (None, None, None))
    if (generation, torn_by) == (manifest.get("generation"), by):
        return Absent({"not_inspected": True, "status": status})
    return Same({"not_inspected": True})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
