"""The example's kind with one fault each: the conformance suite must notice every one of them.

`BROKEN` is by property; each is a factory for `--backend=tests.support.broken:NAME`.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from deprovisioner_directory import backend, conformance, marks
from deprovisioner_directory.root import Root, reached

from deprovisioner.sdk import (
    Absent,
    Different,
    Finding,
    Json,
    MarkedObject,
    Observation,
    Refused,
    Same,
    Still,
    Unavailable,
    always,
)


class _Directory(backend.Directory):
    """What the faults need of a Directory."""

    def _path_of(self, manifest: Json) -> Path:
        return Path(self._path) / manifest["name"]


class ProvisionsAgain(_Directory):
    """A provision that is repeated begins from nothing."""

    def provision(self, manifest: Json, credentials: Json) -> Json:
        if isinstance(self.inspect(manifest), Same):
            shutil.rmtree(self._path_of(manifest))
        return super().provision(manifest, credentials)


class AdoptsAnothers(_Directory):
    """An adoption takes what is another resource's."""

    def _against(self, root: Root, manifest: Json, generation: str) -> Iterator[Finding]:
        return iter(())


class KnowsNames(_Directory):
    """Whatever bears the name is taken for the object."""

    def _seen(self, root: Root, manifest: Json) -> Observation:
        seen = super()._seen(root, manifest)
        return Same(seen.seen) if isinstance(seen, Different) and root.has(manifest["name"]) else seen

    def _close(self, root: Root, manifest: Json, still: Still) -> bool:
        self._must_be_ours(root, manifest)
        return super()._close(root, manifest, still)


class BelievesSilence(_Directory):
    """A server out of reach has nothing."""

    def inspect(self, manifest: Json) -> Observation:
        try:
            return super().inspect(manifest)
        except Unavailable:
            return Absent({})


class DestroysOnce(_Directory):
    """A teardown of what is gone is refused."""

    def teardown(self, manifest: Json, fence: int) -> Json:
        if isinstance(self.inspect(manifest), Absent):
            raise Refused("it is gone")
        return super().teardown(manifest, fence)


class DestroysByGlob(_Directory):
    """What begins with the name goes too."""

    def teardown(self, manifest: Json, fence: int) -> Json:
        done = super().teardown(manifest, fence)
        for other in Path(self._path).iterdir():
            if other.name.startswith(manifest["name"]):
                shutil.rmtree(other)
        return done


class LooksUnderTheName(_Directory):
    """Absent is what does not bear the name."""

    def _seen(self, root: Root, manifest: Json) -> Observation:
        seen = super()._seen(root, manifest)
        return Absent({}) if isinstance(seen, Different) and "renamed" in seen.seen else seen


class ClosesNothing(_Directory):
    """A quarantine leaves the name as it is."""

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        with reached(self._path) as root, root.lock():
            self._must_be_ours(root, manifest)
            still()


class AsksNobody(_Directory):
    """A quarantine does not ask whether the claim is lost."""

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        super().quarantine(manifest)


class MarksLate(_Directory):
    """The folder stands under its name before its mark is in it."""

    def provision(self, manifest: Json, credentials: Json) -> Json:
        with reached(self._path) as root, root.lock():
            self._must_be_ours(root, manifest)
            if not root.has(manifest["name"]):
                os.mkdir(manifest["name"], 0o770, dir_fd=root.fd)
                marks.put(root, manifest["name"], manifest["generation"], manifest["name"])
        return manifest


class BelievesAnyServer(_Directory):
    """The manifest's server is not compared."""

    def _seen(self, root: Root, manifest: Json) -> Observation:
        return super()._seen(root, manifest | {"server": root.server()})


class Leaks(_Directory):
    """An error has what opens the folder."""

    def provision(self, manifest: Json, credentials: Json) -> Json:
        try:
            return super().provision(manifest, credentials)
        except Refused as error:
            raise Refused(f"{error} ({credentials})") from error


class TellsAll(_Directory):
    """The evidence grows with what a customer puts there."""

    def teardown(self, manifest: Json, fence: int) -> Json:
        names = [str(path) for path in self._path_of(manifest).rglob("*")]
        return super().teardown(manifest, fence) | {"files": names * 50}


class TellsNoQuarantine(_Directory):
    """What is closed is told as if it stood."""

    def objects(self) -> Iterator[MarkedObject]:
        for one in super().objects():
            yield MarkedObject(one.generation, one.names, one.parts, one.resource_id)


class Secretive(conformance.Subject):
    """Its folders' paths are secrets."""

    not_shown: ClassVar[Mapping[str, str]] = {
        name: why for name, why in conformance.Subject.not_shown.items() if name != "secrets"
    }

    def secrets(self, credentials: Json) -> list[str]:
        return [credentials["path"]]


def _broken(kind: type[_Directory], subject: type[conformance.Subject] = conformance.Subject) -> Callable[[], Any]:
    class Broken(subject):  # type: ignore[misc, valid-type]
        def backend(self) -> Any:
            return kind(f"directory:{self._root}")

        def dead(self) -> Any:
            return kind(f"directory:{self._root}/not/mounted")

        @contextmanager
        def elsewhere(self) -> Iterator[Any]:
            (root := self._root.parent / f"other-{uuid.uuid4()}").mkdir()
            other = kind(f"directory:{root}")
            other.plan(uuid.uuid4(), uuid.uuid4())
            yield other

    @contextmanager
    def factory() -> Iterator[Any]:
        with conformance.subject() as made:
            yield Broken(made._root)

    return factory


BROKEN: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    "provision twice": ("provisions_again", _broken(ProvisionsAgain)),
    "adopt": ("adopts_another_s", _broken(AdoptsAnothers)),
    "told apart": ("knows_names", _broken(KnowsNames)),
    "unreachable": ("believes_silence", _broken(BelievesSilence)),
    "destroy repeated": ("destroys_once", _broken(DestroysOnce)),
    "name reuse": ("knows_names", _broken(KnowsNames)),
    "neighbours": ("destroys_by_glob", _broken(DestroysByGlob)),
    "any match is not absence": ("looks_under_the_name", _broken(LooksUnderTheName)),
    "quarantine and release": ("closes_nothing", _broken(ClosesNothing)),
    "lost claim": ("asks_nobody", _broken(AsksNobody)),
    "killed and resumed": ("marks_late", _broken(MarksLate)),
    "wrong server": ("believes_any_server", _broken(BelievesAnyServer)),
    "secrets": ("leaks", _broken(Leaks, Secretive)),
    "bounded evidence": ("tells_all", _broken(TellsAll)),
    "inventory": ("tells_no_quarantine", _broken(TellsNoQuarantine)),
}
globals().update(dict(BROKEN.values()))
# No fault of a folder shows these; faults of the shipped kinds do (tests/mutations).
ELSEWHERE = {"not authoritative", "least rights", "two teardowns at once"}
