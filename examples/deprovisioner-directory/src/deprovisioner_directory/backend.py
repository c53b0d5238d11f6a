"""The verbs: a directory tree, made, adopted, closed, opened again, removed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress

from deprovisioner.sdk import (
    IN_QUARANTINE,
    Absent,
    Different,
    Finding,
    Json,
    MarkedObject,
    Observation,
    Plan,
    Refused,
    Same,
    SettingsError,
    Still,
    UnmarkedObject,
    always,
)
from deprovisioner_directory import marks
from deprovisioner_directory.kind import KIND
from deprovisioner_directory.remove import remove
from deprovisioner_directory.root import CLOSED, NEW, Root, reached


class Directory:
    """The folders under one root, which `dsn` names as `directory:PATH`."""

    observable = True

    def __init__(self, dsn: str, *, protected: frozenset[str] = frozenset()) -> None:
        scheme, _, self._path = dsn.partition(":")
        if scheme != "directory" or not self._path.startswith("/"):
            raise SettingsError("the dsn is not directory:/ABSOLUTE/PATH")
        self._protected = protected

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """A name with the resource's UUID, whole; the first plan gives the server its identity."""
        with reached(self._path) as root:
            server = root.identify()
        manifest = KIND.manifest(name=f"d_{resource_id.hex}", generation=str(generation), server=server)
        return Plan(manifest, {"path": f"{self._path}/{manifest['name']}"})

    def provision(self, manifest: Json, credentials: Json) -> Json:  # noqa: ARG002 - the path opens it
        """Made whole where nobody looks, then renamed; an empty folder under the name would be replaced."""
        with reached(self._path) as root, root.lock():
            self._must_be_ours(root, manifest)
            name, generation = manifest["name"], manifest["generation"]
            if not root.has(name) and not root.has(f"{CLOSED}/{generation}"):
                new = f"{NEW}/{generation}"
                with suppress(FileExistsError):
                    os.mkdir(new, 0o770, dir_fd=root.fd)
                marks.put(root, new, generation, name)
                root.move(new, name)
        return manifest

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """Mark a folder that exists, and change nothing else of it."""
        with reached(self._path) as root:
            full = KIND.manifest(name=manifest["name"], generation=str(generation), server=root.identify())
            with root.lock():
                for against in self._against(root, manifest, str(generation)):
                    raise Refused(against.what)
                marks.put(root, full["name"], full["generation"], full["name"])
        return full

    def adoptable(self, manifest: Json) -> list[Finding]:
        """See `deprovisioner.sdk`."""
        with reached(self._path) as root:
            return list(self._against(root, manifest, str(manifest.get("generation"))))

    def inspect(self, manifest: Json) -> Observation:
        """What stands under the name, in the closed place, and under other names with this mark."""
        with reached(self._path) as root:
            return self._seen(root, manifest)

    def locate(self, manifest: Json) -> Observation:
        """The same on whatever server this is; its identity is in the manifest that is found."""
        with reached(self._path) as root:
            here = manifest | {"server": root.server()}
            match self._seen(root, here):
                case Same(seen=seen):
                    return Same(seen | {"manifest": here})
                case other:
                    return other

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """Into the closed place, with mode 0: a client that has the folder open finds nothing in it any more."""
        with reached(self._path) as root, root.lock():
            if self._close(root, manifest, still):
                root.chmod(f"{CLOSED}/{manifest['generation']}", 0)

    def release(self, manifest: Json, still: Still = always) -> None:
        """Back under its name, with the mode that it had."""
        with reached(self._path) as root, root.lock():
            self._must_be_ours(root, manifest)
            closed = f"{CLOSED}/{manifest['generation']}"
            still()
            if root.has(closed):
                before = marks.before(root, manifest["generation"])
                root.chmod(closed, before.mode | 0o700)  # to be renamed into another folder, it must be writable
                root.move(closed, before.name)
                root.chmod(before.name, before.mode)
            elif not root.has(manifest["name"]):
                raise Refused(f"there is no folder {manifest['name']!r} to be given back")
            marks.forget(root, manifest["generation"])

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - the generation fences here
        """Close it, so that nobody else can have it under its name; then remove it, the mark last."""
        with reached(self._path) as root:
            with root.lock():
                self._close(root, manifest, always)
            gone = [remove(root, f"{place}/{manifest['generation']}", last=marks.MARK) for place in (NEW, CLOSED)]
            marks.forget(root, manifest["generation"])
            return {"removed": sum(gone)}

    def unmark(self, manifest: Json) -> Json:
        """See `deprovisioner.sdk`."""
        with reached(self._path) as root, root.lock():
            if root.has(f"{CLOSED}/{manifest['generation']}"):
                raise Refused(f"folder {manifest['name']!r} is in quarantine: restore it first")
            with suppress(FileNotFoundError, NotADirectoryError):
                if root.server() == manifest["server"] and marks.of_tree(root, manifest["name"]) is None:
                    return {"unmarked": manifest["name"], "already": True}
            if isinstance(self._must_be_ours(root, manifest), Absent):
                raise Refused(f"there is no folder {manifest['name']!r}")
            marks.remove(root, manifest["name"])
            return {"unmarked": manifest["name"]}

    def objects(self) -> Iterator[MarkedObject]:
        """See `deprovisioner.sdk`."""
        with reached(self._path) as root:
            server = root.server()
            for name, found in _trees(root):
                if found:
                    moved = "" if found.name == name else f"it was marked as {found.name!r}, and renamed since"
                    yield _object(found.generation, found.name, server, name, why=moved, contradictory=bool(moved))
            for place, why in ((CLOSED, IN_QUARANTINE), (NEW, "its provision has not ended")):
                for generation in filter(_is_uuid, root.names(place)):
                    with suppress(FileNotFoundError):
                        name, part = _name_of(root, place, generation), f"{place}/{generation}"
                        yield _object(generation, name, server, part, why=why, quarantined=place == CLOSED)

    def unmarked(self) -> Iterator[UnmarkedObject]:
        """See `deprovisioner.sdk`."""
        with reached(self._path) as root:
            server = root.server()
            for name, found in _trees(root):
                if found is None:
                    yield UnmarkedObject(KIND.manifest(name=name, server=server))

    def _close(self, root: Root, manifest: Json, still: Still) -> bool:
        """Move a tree that stands into the closed place; whether there is one now."""
        if isinstance(self._must_be_ours(root, manifest), Absent):
            return False
        closed = f"{CLOSED}/{manifest['generation']}"
        still()
        if not root.has(closed) and root.has(manifest["name"]):
            marks.note(root, manifest["generation"], manifest["name"])
            root.move(manifest["name"], closed)
        return root.has(closed)

    def _must_be_ours(self, root: Root, manifest: Json) -> Observation:
        """The observation. Raises Refused for what is another's, or protected."""
        if manifest["name"] in self._protected:
            raise Refused(f"{manifest['name']!r} is protected")
        if isinstance(seen := self._seen(root, manifest), Different):
            raise Refused(seen.why)
        return seen

    def _seen(self, root: Root, manifest: Json) -> Observation:
        name, generation, server = manifest["name"], manifest["generation"], root.server()
        if server is None or server != manifest["server"]:
            return Different({"server": server}, f"{root.path} is another file server: {server}")
        places = (f"{NEW}/{generation}", f"{CLOSED}/{generation}", marks.note_name(generation))
        parts = [part for part in places if root.has(part)]
        try:
            found = marks.of_tree(root, name)
        except FileNotFoundError:
            moved = next((other for other, its in _trees(root) if its and its.generation == generation), None)
            if moved is not None:
                return Different({"renamed": moved}, f"folder {moved!r} bears this mark: it was renamed", marked=True)
            return Same({"parts": parts}) if parts else Absent({"name": None})
        except NotADirectoryError:
            return Different({"name": name}, f"{name!r} is no folder any more")
        if found != marks.Mark(generation, name):
            marked = found is not None and found.generation == generation
            return Different({"mark": repr(found)[:300]}, f"folder {name!r} is not the one of this resource", marked)
        return Same({"parts": [*parts, name]})

    def _against(self, root: Root, manifest: Json, generation: str) -> Iterator[Finding]:
        """Why this folder is not adopted; nothing where it is."""
        name = manifest["name"]
        if name in self._protected:
            yield Finding("refused", f"{name!r} is protected", "leave it alone")
        elif manifest.get("server") not in (None, root.server()):
            yield Finding("refused", f"{root.path} is another file server than the manifest's", "correct `server`")
        elif root.has(f"{CLOSED}/{generation}"):
            yield Finding("refused", f"folder {name!r} cannot be adopted: {IN_QUARANTINE}", "open it by hand")
        else:
            try:
                found = marks.of_tree(root, name)
            except (FileNotFoundError, NotADirectoryError):
                yield Finding("not_there", f"there is no folder {name!r} to adopt", "correct `name`")
                return
            if found is not None and found.generation != generation:
                yield Finding("refused", f"folder {name!r} belongs to another resource already", "release that first")
            elif not os.access(name, os.R_OK | os.W_OK | os.X_OK, dir_fd=root.fd):
                yield Finding("right_missing", f"folder {name!r} is not the service's to change", f"chmod g+rwx {name}")


def _trees(root: Root) -> Iterator[tuple[str, marks.Mark | None]]:
    """Each folder under the root, and its mark."""
    for name in root.names():
        if not name.startswith("."):
            with suppress(FileNotFoundError, NotADirectoryError):
                yield name, marks.of_tree(root, name)


def _name_of(root: Root, place: str, generation: str) -> str | None:
    """The name of a tree in a place of ours; None where it has no mark yet. Raises FileNotFoundError."""
    if place == CLOSED:
        return marks.before(root, generation).name
    found = marks.of_tree(root, f"{place}/{generation}")
    return None if found is None else found.name


def _is_uuid(text: str) -> bool:
    with suppress(ValueError):
        return str(uuid.UUID(text)) == text
    return False


def _object(
    generation: str,
    name: str | None,
    server: str | None,
    part: str,
    *,
    why: str,
    quarantined: bool = False,
    contradictory: bool = False,
) -> MarkedObject:
    names = {"name": name, "generation": generation, "server": server}
    resource = None
    with suppress(ValueError):
        resource = uuid.UUID(name.removeprefix("d_")) if name and name.startswith("d_") else None
    return MarkedObject(generation, names, (part,), resource, quarantined, contradictory, why)
