"""The product's runner, stopped before each of its steps; and a server that is a dict."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from outbox.errors import BackendError, ClaimLost, Refused, StartRefused, Transient, Unavailable
from outbox.rows import Claim, Json
from tests.support.model import Model
from worker.backends import Absent, Different, Observation, Plan, Same, Still, always
from worker.run import Run

TROUBLES: dict[str, type[BackendError]] = {"unavailable": Unavailable, "transient": Transient, "refused": Refused}


@dataclass
class Thing:
    """An object on the server. `late`: the claim of its maker was no longer valid when it was made."""

    name: str
    generation: str | None
    maker: "Stepper | None" = None
    late: bool = False


@dataclass
class Server:
    """A backend's server: the objects by name, those in quarantine, and those it has destroyed."""

    standing: dict[str, Thing] = field(default_factory=dict)
    buried: list[Thing] = field(default_factory=list)
    destroyed: list[tuple[Thing, str]] = field(default_factory=list)

    def bearing(self, generation: str) -> list[Thing]:
        return [t for t in (*self.standing.values(), *self.buried) if t.generation == generation]

    def look(self, manifest: Json) -> Observation:
        if self.bearing(manifest["generation"]):
            return Same({"there": True})
        if other := self.standing.get(manifest["name"]):
            return Different({"generation": other.generation}, "it has another generation")
        return Absent({"absent": True})

    def make(self, manifest: Json, maker: "Stepper") -> Json:
        late = not maker.model.lives(maker.claim)
        there = self.standing.setdefault(manifest["name"], Thing(manifest["name"], manifest["generation"], maker, late))
        if there.generation != manifest["generation"]:
            raise Refused("the name is taken")
        return manifest

    def mark(self, manifest: Json, generation: str) -> Json:
        there = self.standing.get(manifest["name"])
        if there is None or there.generation not in (None, generation):
            raise Refused("nothing there that could be adopted")
        there.generation = generation
        return manifest | {"generation": generation}

    def bury(self, manifest: Json) -> None:
        """The quarantine; it checks the generation in the same call."""
        there = self.standing.get(manifest["name"])
        if isinstance(self.look(manifest), Different):
            raise Refused("it has another generation")
        if there is not None and there.generation == manifest["generation"]:
            self.buried.append(self.standing.pop(there.name))

    def release(self, manifest: Json) -> None:
        for thing in [t for t in self.buried if t.generation == manifest["generation"]]:
            if thing.name in self.standing:
                raise Refused("its name is another's now")
            self.buried.remove(thing)
            self.standing[thing.name] = thing

    def log_in(self, manifest: Json) -> Json:
        there = self.standing.get(manifest["name"])
        if there is None or there.generation != manifest["generation"]:
            raise Transient("nobody logs in here")
        return {"login": True}

    def destroy(self, manifest: Json) -> Json:
        for thing in [t for t in self.buried if t.generation == manifest["generation"]]:
            self.buried.remove(thing)
            self.destroyed.append((thing, manifest["generation"]))
        return {"destroyed": manifest["name"]}


class Killed(BaseException):
    """Stands for a SIGKILL: no `except Exception` of the product catches it."""


class Stepper(threading.Thread):
    """The runner with one claim, in a thread; it stops before every call to a server, until `step` lets it go on.

    It is the runner's backend as well, so that it can stop those calls too. Only one thread runs at any time.
    """

    observable = True

    def __init__(self, model: Model, server: Server, claim: Claim, worker: str, record: Callable[..., Any]) -> None:
        super().__init__(daemon=True)
        self.model, self.server, self.claim, self.worker = model, server, claim, worker
        self.before = "birth"  # the call it has stopped before; "" when it has ended
        self.saw_absence = False
        self.cut_short = False  # killed, or refused by the server: an object that it made late may be left
        self.broke: BaseException | None = None
        self._record_one = record
        self._how = "well"
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self.start()
        self._stood()

    def step(self, how: str = "well") -> None:
        """Let it make its next call: `well`, or it is `killed`, or the answer is `lost`, or the server fails."""
        self._how = how
        troubled = how == "killed" or (how == "refused" and self.before in ("bury", "destroy"))
        self.cut_short = self.cut_short or troubled
        self._go.release()
        self._stood()

    def end(self) -> None:
        if self.before:
            self._how = "killed"
            self._go.release()
        self.join()

    def run(self) -> None:
        try:
            _SteppedRun(self)()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `step`, in the thread of the test
            self.broke = error
        finally:
            self.before = ""
            self._stands.release()

    def _stood(self) -> None:
        self._stands.acquire()
        if self.broke is not None:
            raise self.broke

    def stand(self, before: str) -> str:
        self.before = before
        self._stands.release()
        self._go.acquire()
        if self._how == "killed":
            raise Killed
        return self._how

    def record(self, transition: Callable[..., Any], **words: Any) -> Any:
        how = self.stand(transition.__name__)
        try:
            return self._record_one(transition, self.claim, worker=self.worker, twice=how == "lost", **words)
        except StartRefused:
            raise
        except BaseException as error:
            self.broke = error  # the runner would take it for a failure of the job
            raise Killed from error

    # -- the backend -------------------------------------------------------------------------------------------

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        label = self.model.resources[str(resource_id)].label
        return self._call("plan", lambda: Plan({"name": label, "generation": str(generation)}, {"password": "p"}))

    def provision(self, manifest: Json, credentials: Json) -> Json:
        return self._call("make", lambda: self.server.make(manifest, self))

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        return self._call("mark", lambda: self.server.mark(manifest, str(generation)))

    def inspect(self, manifest: Json) -> Observation:
        seen = self._call("look", lambda: self.server.look(manifest))
        self.saw_absence = isinstance(seen, Absent)
        return seen

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """`still` and the change are one step: each keeps a `release` out."""

        def shut() -> None:
            still()
            self.server.bury(manifest)

        self._call("bury", shut)

    def release(self, manifest: Json, still: Still = always) -> None:
        def open_() -> None:
            still()
            self.server.release(manifest)

        self._call("release", open_)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        return self._call("prove", lambda: self.server.log_in(manifest))

    def teardown(self, manifest: Json, fence: int) -> Json:
        self._call("bury", lambda: self.server.bury(manifest))
        return self._call("destroy", lambda: self.server.destroy(manifest))

    def _call(self, what: str, act: Callable[[], Any]) -> Any:
        match self.stand(what):
            case "well":
                return act()
            case "lost":
                act()
                raise Transient("the answer was lost")
            case error:
                raise TROUBLES[error]("the server is told to fail")


class _SteppedRun(Run):
    """The runner itself, with a stop before each transition."""

    def __init__(self, stepper: Stepper) -> None:
        super().__init__(stepper.claim, stepper, worker=stepper.worker)
        self._stepper = stepper

    def record(self, transition: Callable[..., Any], *, within: Any = None, **words: Any) -> Any:
        return self._stepper.record(transition, **words)

    def still(self) -> None:
        job = self._stepper.model.jobs[self.claim.id]
        ours = (job.state, job.fence) == ("running", self.claim.fence)
        try:
            super().still()
        except ClaimLost:
            assert not ours, f"{self.claim} should be valid: {job}"
            raise
        assert ours, f"{self.claim} should be lost: {job}"
        job.alive = True
