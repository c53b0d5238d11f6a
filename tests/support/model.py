"""A reference model of the outbox: what each transition may do, and when. It learns of them from events alone."""

from dataclasses import dataclass
from typing import Any

from outbox.errors import (
    Busy,
    ClaimLost,
    Conflict,
    Early,
    FenceMismatch,
    Held,
    JobNotStuck,
    NotObserved,
    StartRefused,
    StillThere,
    StillWanted,
    Unwanted,
)
from outbox.rows import Claim, Json

MOVES, LANDED = "moves", "landed"
Verdict = str | type[StartRefused]
# The event that each verb of a worker writes, and the state it leaves its job in.
EVENT = {"start": "started", "start_provision": "started", "complete": "completed", "activate": "activated"}
EVENT |= {"retry": "retried", "defer": "deferred", "stick": "stuck", "rollback": "rolled_back", "note_late": "late"}
EVENT |= {"advance": "quarantined", "give_back": "restored"}
LEAVES = {"complete": "succeeded", "activate": "succeeded", "retry": "pending", "defer": "pending"}
LEAVES |= {"stick": "stuck", "rollback": "cancelled", "advance": "pending", "give_back": "succeeded"}
# The status of a resource for which a job of a kind starts.
WANTED = {"provision": "provisioning", "deprovision": "deleting", "restore": "restoring"}
FINAL = ("succeeded", "cancelled")
GIVEN_UP = "it cannot be given back"  # what an operator says who gives a restore up


@dataclass
class Job:
    """What a row of the outbox must look like. `alive`: its lease has not passed."""

    id: int
    kind: str
    resource: str
    max_attempts: int
    state: str = "pending"
    stuck_reason: str | None = None
    fence: int = 0
    attempts: int = 0
    started_fence: int | None = None
    alive: bool = False
    held_by: int | None = None
    step: str | None = None
    started_step: str | None = None

    @property
    def lasts(self) -> bool:
        """Whether it is the one job of its kind that its resource may have."""
        return self.state not in {"deprovision": ("cancelled",), "restore": FINAL}.get(self.kind, ())


@dataclass
class Resource:
    """What a row of resources must look like. `label` is the name that its object has on the server.

    `early`: its `purge_at` is still to come.
    """

    id: str
    generation: str
    label: str
    adopted: bool
    protected: bool
    status: str = "provisioning"
    activated: bool = False
    expired: bool = False
    early: bool = False


class Model:
    """The rows as they must be."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.jobs: dict[int, Job] = {}
        self.resources: dict[str, Resource] = {}
        self.told: set[tuple[int, int, str]] = set()  # job, fence, event
        self.holds: dict[int, str] = {}  # those in force: their scope; each covers all there is
        self.looks: dict[tuple[int, int], str] = {}  # job, fence: what was found a moment ago

    def of(self, resource_id: object, kind: str) -> Job | None:
        """The resource's job of a kind; there is never a second that lasts."""
        among = (j for j in self.jobs.values() if j.lasts)
        return next((j for j in among if (j.resource, j.kind) == (str(resource_id), kind)), None)

    def restorable(self, resource: Resource) -> bool:
        """Whether a restore takes its teardown back now."""
        job = self.of(resource.id, "deprovision")
        open_ = job is not None and job.state not in FINAL and job.started_step != "destroy"
        return open_ and resource.status == "deleting" and resource.activated

    def lives(self, claim: Claim) -> bool:
        """Whether the claim is valid: its fence stands, and its lease has not passed."""
        job = self.jobs[claim.id]
        return job.state == "running" and job.fence == claim.fence and job.alive

    def verdict(self, verb: str, claim: Claim) -> Verdict:
        """What `verb` by the holder of `claim` must come to now."""
        job, resource = self.jobs[claim.id], self.resources[str(claim.resource_id)]
        ours = job.fence == claim.fence and job.state == "running"
        if verb == "note_late":
            return MOVES
        if verb in ("start", "start_provision"):
            if not (ours and job.alive):
                return ClaimLost
            if job.started_fence == job.fence:
                return LANDED
            if resource.status != WANTED[job.kind]:
                return Unwanted
            if self.holds and job.kind != "restore":
                return Held
            others = [j for j in self.jobs.values() if j.resource == job.resource and j is not job]
            if any(other.state == "running" for other in others):
                return Busy
            return Early if job.step in ("wait", "destroy") and resource.early else MOVES
        may = {
            "advance": job.step == "quarantine" and job.started_fence == job.fence,
            "give_back": job.kind == "restore" and job.started_fence == job.fence and resource.status == "restoring",
            "complete": job.kind == "deprovision" and resource.status == "deleting",
            "activate": job.kind == "provision" and resource.status in ("provisioning", "deleting"),
            "retry": job.attempts < job.max_attempts,
            "defer": job.started_fence != job.fence,
            "stick": True,
            "rollback": job.kind == "provision" and (not resource.adopted or resource.status != "provisioning"),
        }
        if ours and may[verb]:
            return MOVES
        return LANDED if (job.id, claim.fence, EVENT[verb]) in self.told else ClaimLost

    def resolvable(self, job: Job, behind: int) -> str | type[Conflict]:
        """What an operator's word that it did happen must come to now, said with a fence that is so far behind."""
        if job.state != "stuck" or behind:
            return FenceMismatch if job.state == "stuck" else JobNotStuck
        if job.kind == "provision":
            return MOVES if self.resources[job.resource].status in ("deleting", "deleted") else StillWanted
        if job.kind == "restore":
            return MOVES
        found = self.looks.get((job.id, job.fence))
        return MOVES if found == "absent" else NotObserved if found is None else StillThere

    def replay(self, event: Json) -> None:
        """One event, of a transition or an act that must have been allowed."""
        what, detail = event["event"], event["detail"] or {}
        if event["job_id"] is None:
            self._act(what, event["resource_id"], detail)
            return
        resource = self.resources[event["resource_id"]]
        if what == "enqueued":
            self._enqueued(event, resource)
            return
        job = self.jobs[event["job_id"]]
        assert job.resource == resource.id
        self.told.add((job.id, event["fence"], what))
        assert event["fence"] == job.fence + (what == "claimed"), f"{what} moves the fence of {job}"
        match what:
            case "claimed":
                assert job.state == "pending", f"claimed: {job}"
                job.state, job.fence, job.attempts, job.alive = "running", job.fence + 1, job.attempts + 1, True
                job.started_step = None if job.started_step == "quarantine" else job.started_step
            case "swept":
                assert job.state == "running", f"swept: {job}"
                assert not job.alive, f"swept with a living lease: {job}"
                spent = job.kind == "deprovision" and job.attempts >= job.max_attempts
                self._put(job, "stuck" if spent else "pending", "attempts_exhausted" if spent else None)
                assert detail["state"] == job.state
            case "redriven":
                assert job.state == "stuck", f"redriven: {job}"
                self._put(job, "pending")
                job.attempts = 0
            case "observed":
                assert job.state == "stuck", f"observed: {job}"
                self.looks[job.id, job.fence] = detail["found"]
            case "resolved":
                assert self.resolvable(job, 0) == MOVES, f"resolved: {job}, {resource}"
                self._put(job, "succeeded" if job.kind == "deprovision" else "cancelled")
                assert detail["state"] == job.state
                if job.kind == "deprovision":
                    resource.status = "deleted"
            case "cancelled":
                assert self.restorable(resource), f"restored: {job}, {resource}"
                assert job is self.of(resource.id, "deprovision")
                self._put(job, "cancelled")
                job.held_by = None
                resource.status, resource.early, resource.expired = "restoring", False, False
            case "purge_ordered":
                assert resource.status == "deleting", f"purged: {resource}"
                assert resource.early, f"purged: {resource}"
                assert job is self.of(resource.id, "deprovision")
                resource.early = False
            case "late":
                assert detail["fence"] <= job.fence
            case _:
                self._moved(what, job, resource, detail)

    def _act(self, what: str, id: str, detail: Json) -> None:
        match what:
            case "hold_engaged":
                self.holds[detail["hold"]] = detail["scope"]
            case "hold_released":
                del self.holds[detail["hold"]]
            case "changed":
                resource = self.resources[id]
                assert resource.status in ("provisioning", "active"), f"changed: {resource}"
                if "protected" in detail["new"]:
                    assert resource.protected == detail["old"]["protected"]
                    resource.protected = detail["new"]["protected"]
            case _:
                raise AssertionError(f"an act that the model does not know: {what}")

    def _enqueued(self, event: Json, resource: Resource) -> None:
        kind = event["kind"]
        assert self.of(resource.id, kind) is None, f"a second {kind} job of {resource}"
        assert event["fence"] == 0
        step = None
        if kind == "deprovision":
            resource.early = "purge_at" in (event["detail"] or {})
            step = "quarantine" if resource.early else "destroy"
            assert resource.activated or not resource.early, f"nothing is kept of {resource}"
        if kind == "deprovision" and event["reason"] != "the provision failed":
            among = ("restoring",) if event["reason"] == GIVEN_UP else ("active", "provisioning")
            assert resource.status in among, f"a DELETE of {resource}"
            assert not resource.protected, f"a DELETE of {resource}"
            resource.status = "deleting"
        assert resource.status == WANTED[kind]
        self.jobs[event["job_id"]] = Job(event["job_id"], kind, resource.id, self.max_attempts, step=step)

    def _moved(self, what: str, job: Job, resource: Resource, detail: Json) -> None:
        verb = {"started": "start_provision" if job.kind == "provision" else "start"}.get(what) or next(
            verb for verb, event in EVENT.items() if event == what
        )
        now = self.verdict(verb, _claim(job))
        assert now == MOVES, f"{what} was allowed, where {verb} should be {now}: {job}, {resource}"
        if what == "started":
            job.started_fence = job.fence
            if job.kind == "deprovision":
                job.step = "destroy" if job.step == "wait" else job.step
                job.started_step = job.step
            return
        self._put(job, LEAVES[verb], detail.get("stuck_reason"))
        if what == "deferred":
            job.attempts -= 1
            job.held_by = detail["hold"] if detail.get("hold") in self.holds else None
        elif what == "quarantined":
            job.step, job.attempts = "wait", 0
        elif what == "restored":
            resource.status = "active"
        elif what == "completed":
            resource.status = "deleted"
        elif what == "activated" and resource.status == "provisioning":
            resource.status, resource.activated = "active", True
        elif what == "rolled_back" and resource.status == "provisioning":
            resource.status = "deleting"

    @staticmethod
    def _put(job: Job, state: str, reason: str | None = None) -> None:
        job.state, job.stuck_reason, job.alive = state, reason, False


def _claim(job: Job) -> Any:
    """As much of a claim as a verdict asks for."""
    return type("Held", (), {"id": job.id, "fence": job.fence, "resource_id": job.resource})
