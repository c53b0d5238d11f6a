"""For many objects: all that the provisioner keeps for us, objects on a server that moved, what could be adopted."""

import uuid
from collections.abc import Iterator
from itertools import groupby

from outbox.errors import Transient
from outbox.kinds.webhook import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Absent, Different, Finding, MarkedObject, Observation, Same
from worker.backends.webhook.provisioner import ABSENT, Provisioner
from worker.backends.webhook.verbs import must_not_be_listed, shown


def objects(provisioner: Provisioner) -> Iterator[MarkedObject]:
    """See `worker.backends.objects`; the provisioner gives pages, in the order of the generations."""
    document = provisioner.must_have("objects")
    for generation, found in groupby(_listed(provisioner), key=lambda one: str(one["generation"])):
        yield _object(generation, list(found), document.server)


def _listed(provisioner: Provisioner) -> Iterator[Json]:
    cursor, last = None, ""
    while True:
        body = provisioner.ask("objects", {"cursor": cursor}).body or {}
        items, cursor = body.get("items"), body.get("next")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise Transient("the provisioner's answer to `objects` has no list of objects")
        for one in map(shown, items):
            if str(one["generation"]) < last:  # pages that overlap would tell an object twice, or never end
                raise Transient("the provisioner does not list its objects in the order of their generations")
            last = str(one["generation"])
            yield one
        if cursor is None:
            return
        if not items:
            raise Transient("the provisioner's list has an empty page, and a next one")


def _object(generation: str, found: list[Json], server: str) -> MarkedObject:
    one = found[0]
    external = one["external"] if len(found) == 1 else None
    names = {"external": external, "generation": generation, "server": server}
    contradictory = external is None or _uuid(generation) is None
    why = IN_QUARANTINE if one["quarantined"] else ""
    return MarkedObject(
        generation,
        names,
        tuple(f"object {each['external']}" for each in found),
        resource_id=_uuid((external or "").removeprefix("res_")) if (external or "").startswith("res_") else None,
        quarantined=one["quarantined"],
        contradictory=contradictory,
        why="several objects bear one generation, or it is no UUID" if contradictory else why,
    )


def locate(provisioner: Provisioner, manifest: Json) -> Observation:
    """See `worker.backends.fleet.locate`."""
    document = provisioner.must_have("locate")
    answer = provisioner.ask("locate", {"generation": manifest["generation"]})
    if answer.status in ABSENT:
        must_not_be_listed(provisioner, manifest, document)
        return Absent({"status": answer.status, "server": document.server})
    seen = shown(answer.body or {})
    if answer.status != 200 or seen["generation"] != manifest["generation"] or seen["external"] is None:
        return Different(seen, f"the provisioner finds no object of this generation (HTTP {answer.status})")
    full = KIND.manifest(external=seen["external"], generation=manifest["generation"], server=document.server)
    return Same(seen | {"manifest": full})


def adoptable(provisioner: Provisioner, manifest: Json) -> list[Finding]:
    """See `worker.backends.fleet.adoptable`."""
    document = provisioner.must_have("adoptable")
    if manifest["external"] in provisioner.protected:
        return [Finding("refused", f"{manifest['external']!r} is protected", "leave it alone")]
    if why := provisioner.elsewhere(manifest, document):
        return [Finding("refused", why, "name the backend of that server")]
    answer = provisioner.ask("adoptable", {"generation": manifest.get("generation"), "manifest": manifest})
    if answer.status in ABSENT:
        return [Finding("not_there", f"there is no object {manifest['external']!r}", "check its name")]
    found = (answer.body or {}).get("findings", [])
    if answer.status != 200 or not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return [Finding("refused", f"the provisioner would refuse it (HTTP {answer.status})", "ask its owner")]
    return [Finding(_word(one, "code"), _word(one, "what"), _word(one, "mend")) for one in found]


def unmark(provisioner: Provisioner, manifest: Json) -> Json:
    """See `worker.backends.fleet.unmark`; the provisioner refuses what is in quarantine."""
    return {"status": provisioner.act("unmark", manifest).status}


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _word(one: Json, name: str) -> str:
    return str(one.get(name, ""))
