"""What each kind of backend writes in a manifest: one module a kind, and no backend's SDK.

The API checks by it the manifest of an object to adopt; the kind's backend builds manifests by it. A package adds a
kind with an entry point of its own in the group `deprovisioner.kinds`: the kind's name, and where its Kind is. The
manifest of a kind without one is stored as it came, and its backend checks it.
"""

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from outbox.errors import SettingsError
from outbox.kinds.fields import Check, Field, Kind, text, uuid_text, whole_number
from outbox.rows import Json

__all__ = ["ENTRY_POINTS", "Check", "Field", "Kind", "check", "find", "redacted", "text", "uuid_text", "whole_number"]

ENTRY_POINTS = "deprovisioner.kinds"


def check(kind: str, manifest: Json) -> Json:
    """The manifest as it is stored. Raises BadRequest that names every wrong field: `manifest.oid: must be …`."""
    known = find(kind)
    return manifest if known is None else known.check(manifest)


def redacted(kind: str, manifest: Json) -> Json:
    """The manifest as it may be shown: without the values of secret fields."""
    known = find(kind)
    return manifest if known is None else known.redacted(manifest)


@lru_cache(maxsize=100)  # more than are ever installed; callers may ask for any name
def find(name: str) -> Kind | None:
    """The Kind of that name, None when no package brings one. Raises SettingsError for a wrong entry point."""
    point = _installed().get(name)
    if point is None:
        return None
    kind = point.load()
    if not isinstance(kind, Kind) or kind.name != name:
        raise SettingsError(f"entry point {name!r} in {ENTRY_POINTS}: {point.value} is not the Kind of that name")
    return kind


@lru_cache(maxsize=1)
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
