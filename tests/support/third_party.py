"""A package as a third party might ship it: a kind whose objects are folders. Of ours it imports the SDK alone."""

import uuid
from pathlib import Path

from deprovisioner.sdk import (
    Absent,
    Different,
    Field,
    Json,
    Kind,
    Observation,
    Plan,
    Refused,
    Same,
    SettingsError,
    Still,
    Unavailable,
    always,
    mark,
    text,
    uuid_text,
)

KIND = Kind(
    name="folder",
    about="a folder",
    fields=(
        Field("folder", text(), "its name", required=True),
        Field("generation", uuid_text, "which resource's it is; the file `generation` in it says so"),
        Field("token", text(), "shown to nobody", secret=True),
    ),
    example={"folder": "orders"},
)


class Folders:
    """Folders under one root, which `dsn` names as `folder:PATH`."""

    observable = True

    def __init__(self, dsn: str, *, protected: frozenset[str]) -> None:
        scheme, _, path = dsn.partition(":")
        if scheme != "folder":
            raise SettingsError("the dsn is not folder:PATH")
        self._root = Path(path)
        self._protected = protected

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        self._reach()
        return Plan(KIND.manifest(folder=f"f_{resource_id.hex}", generation=str(generation)), {"path": str(self._root)})

    def provision(self, manifest: Json, credentials: Json) -> Json:
        self._not_different(manifest)
        self._folder(manifest).mkdir(exist_ok=True)
        self._mark(manifest).write_text(mark(manifest["generation"]))
        return manifest

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        full = KIND.manifest(folder=manifest["folder"], generation=str(generation))
        self._reach()
        if not self._folder(full).is_dir():
            raise Refused(f"there is no folder {full['folder']!r} to adopt")
        if self._mark(full).exists():
            self._not_different(full)
        self._mark(full).write_text(mark(full["generation"]))
        return full

    def inspect(self, manifest: Json) -> Observation:
        self._reach()
        if not self._folder(manifest).exists():
            return Absent({"folder": None})
        found = self._mark(manifest).read_text() if self._mark(manifest).exists() else None
        if found != mark(manifest["generation"]):
            return Different({"mark": found}, f"folder {manifest['folder']!r} is not the one of this resource")
        return Same({"mark": found})

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        self._allowed(manifest)
        still()

    def release(self, manifest: Json, still: Still = always) -> None:
        self._not_different(manifest)
        still()

    def teardown(self, manifest: Json, fence: int) -> Json:
        self._allowed(manifest)
        if self._folder(manifest).exists():
            for file in sorted(self._folder(manifest).iterdir(), key=lambda file: file.name == "generation"):
                file.unlink()
            self._folder(manifest).rmdir()
        return {"fence": fence}

    def _folder(self, manifest: Json) -> Path:
        return self._root / str(manifest["folder"])

    def _mark(self, manifest: Json) -> Path:
        return self._folder(manifest) / "generation"

    def _reach(self) -> None:
        if not self._root.is_dir():
            raise Unavailable(f"{self._root} is not there")

    def _allowed(self, manifest: Json) -> None:
        if manifest["folder"] in self._protected:
            raise Refused(f"{manifest['folder']!r} is protected")
        self._not_different(manifest)

    def _not_different(self, manifest: Json) -> None:
        if isinstance(seen := self.inspect(manifest), Different):
            raise Refused(seen.why)
