"""Random sequences of transitions, crashes, paused workers, lost answers and expired leases, on real PostgreSQL.

Every worker here is the product's own runner, run step by step (`stepper.Stepper`). After each step the rows must be
those of the reference model, and each promise is checked in the database itself.
"""

import datetime as dt
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import Connection, text

from outbox import credentials, holds, jobs, observations, resources
from outbox import db as database
from outbox.errors import (
    Conflict,
    DeletionProtected,
    FenceMismatch,
    JobNotStuck,
    NotActive,
    NotATeardown,
    NotDeleting,
    NothingToRestore,
    Restoring,
    StartRefused,
    TeardownStarted,
)
from outbox.events import Event
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from outbox.states import HoldScope, StuckReason
from tests.support.model import EVENT, FINAL, GIVEN_UP, LANDED, MOVES, Model, Resource, Verdict
from tests.support.stepper import Server, Stepper, Thing
from worker import observer

BACKEND = "pg-main"
MAX_ATTEMPTS = 3
# At once: with more of them, less happens to each.
MOST_RESOURCES = 3
_N = st.integers(0, 7)  # which of those that fit; a small number shrinks to the first
_HOW = st.sampled_from(["well", "well", "well", "lost", "unavailable", "transient", "refused", "killed"])
_RARELY = st.sampled_from([False, False, False, True])
_SLOTS = st.integers(1, 3)
_GRACE = st.sampled_from([3600, 3600, 0])
_SCOPES = {"global": None, "backend": BACKEND, "tenant": "acme", "kind": "postgres"}
# What may happen next, each with its weight: a method of the machine, and what it is called with.
_NEXT: list[tuple[int, str, list[st.SearchStrategy[Any]]]] = [
    (6, "work", [_N, st.integers(0, 2), _HOW]),
    (4, "serve", [_SLOTS, st.integers(0, 4)]),
    (3, "delete", [_N, st.integers(0, 1), _GRACE]),
    (3, "restore", [_N, st.integers(0, 1)]),
    (1, "purge", [_N]),
    (1, "a_grace_passes", [_N]),
    (5, "a_successor_comes", [_N, st.integers(0, 3)]),
    (4, "meddle", [_N, st.sampled_from(["start", "start", "start", "end", "retry", "defer", "stick", "rollback"])]),
    (1, "a_lease_passes", [_N]),
    (2, "sweep", []),
    (1, "claim", [_SLOTS]),
    (3, "register", [_RARELY, _RARELY, _RARELY]),
    (1, "change", [_N, st.sampled_from(["protect", "unprotect", "expire", "never"])]),
    (2, "redrive", [_N, _RARELY, _RARELY]),
    (2, "resolve", [_N, _RARELY, _RARELY, _RARELY]),
    (1, "heartbeat", [st.lists(_N, min_size=1, max_size=3, unique=True)]),
    (1, "time_passes", []),
    (1, "the_name_is_taken_or_freed", [_N]),
    (1, "hold", [st.sampled_from([*_SCOPES]), _RARELY]),
    (2, "release", [_N]),
]
NEXT = st.one_of([st.tuples(st.just(name), *words) for weight, name, words in _NEXT for _ in range(weight)])

_RESET = (
    "SET LOCAL session_replication_role = replica; DELETE FROM events; DELETE FROM outbox; DELETE FROM resources; "
    "DELETE FROM breakers; DELETE FROM holds; DELETE FROM observations"
)
_ROWS = text("""
    SELECT 'job', to_jsonb(outbox) || jsonb_build_object('alive', COALESCE(lease_expires_at > now(), false),
                                                         'due', available_at <= now()) FROM outbox
     UNION ALL
    SELECT 'resource', to_jsonb(resources) || jsonb_build_object('expired', COALESCE(expires_at <= now(), false),
                                                                 'early', COALESCE(purge_at > now(), false))
      FROM resources
     UNION ALL
    SELECT 'breaker', jsonb_build_object('id', backend, 'open', retry_at > now()) FROM breakers
     UNION ALL
    SELECT 'event', to_jsonb(events) FROM events WHERE id > :last""")

Rows = dict[Any, Json]


def _delete(db: Connection, asked: jobs.Delete) -> jobs.Enqueued:
    return jobs.enqueue_all(db, [asked]).get(asked.request_id) or jobs.enqueued_before(db, asked)


class _InspectionBackend:
    """The backend that an inspection asks."""

    observable = True

    def __init__(self, server: Server) -> None:
        self.inspect = server.look


class Outbox(RuleBasedStateMachine):
    """Callers, workers, an operator, the clock and a person with psql, in any order."""

    def __init__(self) -> None:
        super().__init__()
        with database.transaction() as db:
            db.exec_driver_sql(_RESET)
        self.model = Model(MAX_ATTEMPTS)
        self.server = Server()
        self.steppers: list[Stepper] = []  # those that have not ended
        self.all_steppers: list[Stepper] = []
        self.claims: list[Claim] = []
        self.rows: dict[str, Rows] = {"job": {}, "resource": {}, "breaker": {}}
        self.last = 0
        self.history: list[Json] = []
        self.paused_last = self.delete_last = False

    @rule(what=NEXT)
    def next(self, what: tuple[Any, ...]) -> None:
        """The only rule: with several, Hypothesis leaves out half of them in each run."""
        name, *words = what
        getattr(self, name)(*words)

    # -- callers -----------------------------------------------------------------------------------------------

    @initialize(
        born=st.lists(st.sampled_from(["planned", "made", "deleting", "deleting"]), min_size=1, max_size=2),
        paused_last=st.booleans(),
        delete_last=st.booleans(),
    )
    def begin(self, born: list[str], paused_last: bool, delete_last: bool) -> None:
        """Make some resources, each at some stage, and choose how this run ends."""
        self.paused_last, self.delete_last = paused_last, delete_last
        for n, far in enumerate(born):
            self.register(reused=False, protected=False, adopted=False)
            if far != "planned":
                self.claim(1)
                self._finish()
            if far == "deleting":
                self.delete(n, 0, 3600 * (n % 2))

    def register(self, reused: bool, protected: bool, adopted: bool) -> None:
        if sum(resource.status != "deleted" for resource in self.model.resources.values()) >= MOST_RESOURCES:
            return
        label = f"n{0 if reused else len(self.model.resources)}"
        if adopted:
            self.server.standing.setdefault(label, Thing(label, None))
        manifest = {"name": label} if adopted else None
        new = NewResource("acme", "postgres", BACKEND, label, protected=protected, manifest=manifest)
        key = str(uuid.uuid4())
        made = self._ask(resources.register, new, actor="api", idempotency_key=key, request_digest="d")
        generation = self._ask(self._generation, made[0].id)
        id = str(made[0].id)
        self.model.resources[id] = Resource(id, generation, label, adopted, protected)
        self.check("enqueued")
        again = self._ask(resources.register, new, actor="api", idempotency_key=key, request_digest="d")
        assert again == made, "the same key made something else"
        self.check()

    def change(self, which: int, do: str) -> None:
        resource = self._pick(self.model.resources.values(), which)
        words: Json = {"protected": do == "protect"}
        if do in ("expire", "never"):
            soon = dt.datetime(2999, 1, 1, tzinfo=dt.UTC) + dt.timedelta(list(self.model.resources).index(resource.id))
            words = {"expires_at": soon if do == "expire" else None}
        try:
            self._ask(resources.change, uuid.UUID(resource.id), changes=words, actor="api")
        except NotActive:
            assert resource.status in ("deleting", "deleted", "restoring")
            told = False
        else:
            assert resource.status in ("provisioning", "active")
            told = do == "expire" or (resource.expired if do == "never" else resource.protected != words["protected"])
            resource.expired = do == "expire" if "expires_at" in words else resource.expired
        self._sql("UPDATE resources SET expires_at = expires_at - interval '1000 years' WHERE expires_at > now()")
        self.check(*["changed"] * told)

    def delete(self, which: int, request: int, grace: int) -> None:
        """Send the same DELETE twice, with one request id, as after a lost answer; perhaps as before a restore."""
        resource = self._pick(sorted(self.model.resources.values(), key=lambda r: r.status == "deleted"), which)
        request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{resource.id}{request}")
        asked = jobs.Delete(uuid.UUID(resource.id), "api", request_id=request_id, grace=grace, may_purge=True)
        for _ in range(2):
            job = self.model.of(resource.id, "deprovision")
            before = [id for id, row in self.rows["job"].items() if row["request_id"] == str(request_id)]
            free = resource.status in ("active", "provisioning") and not resource.protected
            wins = free and not before
            try:
                done = self._ask(_delete, asked)
            except (DeletionProtected, Restoring):
                assert not before
                assert job is None
                assert resource.protected or resource.status == "restoring"
                self.check()
                return
            self.check(*["enqueued"] * wins)
            mine = wins or bool(before)
            assert done.won == mine
            if before:
                assert [done.job.id] == before
            elif job is not None:
                assert done.job.id == job.id

    def restore(self, which: int, request: int) -> None:
        """Send the same restore twice, as after a lost answer."""
        resource = self._pick(sorted(self.model.resources.values(), key=lambda r: r.status != "deleting"), which)
        request_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{resource.id}{request}")
        for _ in range(2):
            before = [id for id, row in self.rows["job"].items() if row["request_id"] == str(request_id)]
            wins = self.model.restorable(resource) and not before
            wanted: type[Conflict] | None = None
            if not wins and not before and resource.status not in ("active", "restoring"):
                wanted = TeardownStarted if resource.activated else NothingToRestore
            try:
                with database.transaction() as db:
                    done = jobs.restore(
                        db, uuid.UUID(resource.id), actor="api", reason="a mistake", request_id=request_id
                    )
                said = None
            except Conflict as refused:
                said = type(refused)
            assert said is wanted, f"a restore of {resource} said {said}, and should have been {wanted}"
            self.check(*["cancelled", "enqueued"] * wins)
            assert said or done.won == (wins or bool(before))

    def purge(self, which: int) -> None:
        """An operator brings the destruction forward."""
        resource = self._pick(sorted(self.model.resources.values(), key=lambda r: not r.early), which)
        orders = resource.early
        try:
            with database.transaction() as db:
                jobs.purge(db, uuid.UUID(resource.id), actor="op", reason="now")
        except NotDeleting:
            assert resource.status != "deleting"
            self.check()
            return
        assert resource.status == "deleting"
        self.check(*["purge_ordered"] * orders)

    def a_grace_passes(self, which: int) -> None:
        """As the clock would do it, and no writer could."""
        if early := [resource for resource in self.model.resources.values() if resource.early]:
            self._grace_passes(self._pick(early, which))
            self.check()

    def _grace_passes(self, resource: Resource) -> None:
        with database.transaction() as db:
            db.exec_driver_sql("SET LOCAL session_replication_role = replica")
            passed = "UPDATE resources SET purge_at = now() - interval '1 s' WHERE id = :id AND purge_at > now()"
            db.execute(text(passed), {"id": resource.id})
        resource.early = False

    def redrive(self, which: int, any_job: bool, behind: bool) -> None:
        among = [job for job in self.model.jobs.values() if any_job or job.state == "stuck"]
        if among:
            self._redrive(self._pick(among, which).id, behind)

    def _redrive(self, id: int, behind: int) -> None:
        job = self.model.jobs[id]
        moves = job.state == "stuck" and not behind
        try:
            self._ask(jobs.redrive, id, fence=job.fence - behind, actor="op", reason="again")
            said = None
        except (JobNotStuck, FenceMismatch) as error:
            said = type(error)
        assert said == (None if moves else FenceMismatch if job.state == "stuck" else JobNotStuck)
        self.check(*["redriven"] * moves)

    def resolve(self, which: int, any_job: bool, behind: bool, blind: bool) -> None:
        """An operator resolves a job; before that a worker inspects its object, unless `blind`."""
        among = [job for job in self.model.jobs.values() if any_job or job.state == "stuck"]
        if not among:
            return
        job = self._pick(among, which)
        if not blind:
            self._look_at(job.id)
        wanted = self.model.resolvable(job, behind)
        try:
            why = GIVEN_UP if job.kind == "restore" else "it is gone"
            self._ask(jobs.resolve, job.id, fence=job.fence - behind, actor="op", reason=why)
            said: object = MOVES
        except Conflict as error:
            said = type(error)
        assert said == wanted, f"resolve of {job} said {said}, and should have been {wanted}"
        moved = ["resolved", "enqueued"] if job.kind == "restore" else ["resolved"]
        self.check(*moved * (said == MOVES))

    def _look_at(self, id: int) -> None:
        """A worker inspects the object of the job on the server that the steppers use."""
        job = self.model.jobs[id]
        try:
            self._ask(observations.ask, id, actor="op")
        except (JobNotStuck, NotATeardown):
            assert job.state != "stuck" or job.kind != "deprovision"
            return
        turns = self._ask(observations.take, {BACKEND: 9}, slots=9)
        contended = any(j.resource == job.resource and j.state == "running" for j in self.model.jobs.values())
        assert (id in {turn.job_id for turn in turns}) == (not contended)
        for turn in turns:
            found, seen = observer.inspect(turn, _InspectionBackend(self.server))
            assert self._ask(observations.record, turn, worker="w", found=found, seen=seen)
            self.check("observed")

    # -- workers -----------------------------------------------------------------------------------------------

    def claim(self, slots: int) -> None:
        """One worker claims what is due; a stepper for each claim then stops before its first call."""
        self.check()  # a breaker may have been tripped
        pending = {id: job for id, job in self.rows["job"].items() if job["state"] == "pending"}
        held = bool(set(self.model.holds.values()) - {"tenant"})
        due = [id for id, job in pending.items() if job["due"] and job["held_by"] is None]
        due = [id for id in due if not held or pending[id]["kind"] == "restore"]
        breaker = self.rows["breaker"].get(BACKEND)
        most = slots if breaker is None else 0 if breaker["open"] else 1
        running = {job.resource for job in self.model.jobs.values() if job.state == "running"}
        worker = f"w{len(self.claims)}"
        taken = self._ask(jobs.claim, {BACKEND: slots}, slots=slots, worker=worker)
        assert len(taken) == min(most, len(due))
        assert {c.id for c in taken} <= set(due)
        left = [pending[id]["lane"] for id in set(due) - {c.id for c in taken}]
        assert max([c.lane for c in taken], default=0) <= min(left, default=9), "a lane was passed over"
        self.check(*["claimed"] * len(taken))
        for claim in taken:
            # Of two jobs claimed at once neither is contended: after the DELETE the provision cannot start.
            assert claim.contended == (str(claim.resource_id) in running)
            self.claims.append(claim)
            self.all_steppers.append(Stepper(self.model, self.server, claim, worker, self.record))
            self.steppers.append(self.all_steppers[-1])

    def serve(self, slots: int, steps: int) -> None:
        """A worker claims, and runs some steps."""
        self.time_passes()
        self.claim(slots)
        if self.steppers:
            self.work(-1, steps)

    def work(self, which: int, steps: int, how: str = "well") -> None:
        """One stepper runs some steps without trouble, and one more that ends as `how` says."""
        if not self.steppers:
            return
        stepper = self._pick(self.steppers, which)
        for n in range(steps + 1):
            if stepper.before:
                self._step(stepper, how if n == steps else "well")

    def _step(self, stepper: Stepper, how: str = "well") -> None:
        stepper.step(how)
        if not stepper.before:
            self.steppers.remove(stepper)
        self._promises(self.rows)

    def record(self, transition: Callable[..., Any], claim: Claim, *, twice: bool = False, **words: Any) -> Any:
        """Run one transition, twice when its answer is lost; the result must be what the model says."""
        verb, answer, refused = transition.__name__, None, None
        for _ in range(1 + (twice and verb != "note_late")):
            verdict = self.model.verdict(verb, claim)
            unborn = self.model.resources[str(claim.resource_id)].status == "provisioning"
            undo = ["enqueued"] if verb == "rollback" and unborn else []
            if verb == "complete" and verdict == MOVES:
                self._absence_was_seen(claim, words["seen"])
            try:
                answer, refused = self._ask(transition, claim, **words), None
            except StartRefused as error:
                refused = error
            said: Verdict = type(refused) if refused else verdict if verdict in (MOVES, LANDED) else "allowed"
            assert said == verdict, f"{verb} of {claim} said {said}, and should have been {verdict}"
            self.check(*([EVENT[verb], *undo] if verdict == MOVES else []))
        if refused:
            raise refused
        return answer

    def _absence_was_seen(self, claim: Claim, seen: Json) -> None:
        stepper = next(h for h in self.steppers if (h.claim.id, h.claim.fence) == (claim.id, claim.fence))
        resource = self.model.resources[str(claim.resource_id)]
        assert stepper.saw_absence or "never_made" in seen or ("never_adopted" in seen and resource.adopted)
        assert all(thing.late or resource.adopted for thing in self.server.bearing(resource.generation))

    def meddle(self, which: int, verb: str) -> None:
        """Use a claim, valid or not, past its stepper; but only a stepper has the evidence to end a job."""
        if not self.claims:
            return
        wanted = self._started if verb == "defer" else self._harmful
        claim = self._pick([c for c in self.claims if wanted(c)] or self.claims, which)
        if verb == "start" and claim.kind == "provision":
            verb = "start_provision"
        if verb == "end":
            end = {"deprovision": "complete", "provision": "activate", "restore": "give_back"}[claim.kind]
            verb = "advance" if claim.step == "quarantine" else end
        if verb in ("complete", "activate", "advance", "give_back") and self.model.verdict(verb, claim) == MOVES:
            return
        resource = self.model.resources[str(claim.resource_id)]
        manifest = {"name": resource.label, "generation": resource.generation}
        words: dict[str, Json] = {
            "start_provision": {"manifest": manifest, "credentials": credentials.seal({"password": "p"})},
            "complete": {"seen": {}},
            "activate": {"manifest": manifest},
            "advance": {"event": Event.QUARANTINED, "seen": {}},
            "give_back": {"seen": {}},
            "stick": {"why": StuckReason.REFUSED, "error": "e"},
        }
        said = words.get(verb, {} if verb == "start" else {"error": "e"})
        with suppress(StartRefused):
            self.record(getattr(jobs, verb), claim, worker="z", **said)

    def _started(self, claim: Claim) -> bool:
        """Whether the claim is valid and its job has started."""
        return self._ours(claim) and self.model.jobs[claim.id].started_fence == claim.fence

    def _harmful(self, claim: Claim) -> bool:
        """Whether its job, or another job of its resource, runs under another valid claim."""
        among = [job for job in self.model.jobs.values() if job.resource == str(claim.resource_id)]
        return any(job.alive and (job.id, job.fence) != (claim.id, claim.fence) for job in among)

    def heartbeat(self, which: list[int]) -> None:
        """A heartbeat, even a late one, keeps each job that no other worker has claimed."""
        beating = [claim for n, claim in enumerate(reversed(self.claims)) if n in which]
        if not beating:
            return
        kept = self._ask(jobs.heartbeat, beating)
        ours = [self.model.jobs[c.id] for c in beating if self._ours(c)]
        assert kept == {job.id for job in ours}
        for job in ours:
            job.alive = True
        self.check()

    def _ours(self, claim: Claim) -> bool:
        job = self.model.jobs[claim.id]
        return (job.state, job.fence) == ("running", claim.fence)

    def sweep(self) -> None:
        """The sweep that every worker makes every few seconds: expire, sweep, wake."""
        due = [r for r in self.model.resources.values() if r.status == "active" and r.expired and not r.protected]
        for _ in due:  # one by one: one statement's rows have no order, and runs must be repeatable
            assert self._ask(jobs.expire, actor="w", batch=1) == 1
        assert self._ask(jobs.expire, actor="w") == 0
        self.check(*["enqueued"] * len(due))
        lost = sum(job.state == "running" and not job.alive for job in self.model.jobs.values())
        assert self._ask(jobs.sweep, actor="w") == lost
        woken = [job for job in self.model.jobs.values() if job.held_by not in (None, *self.model.holds)]
        assert self._ask(jobs.wake) == len(woken)
        for job in woken:
            job.held_by = None
        self.check(*["swept"] * lost)

    def hold(self, scope: str, really: bool) -> None:
        """An operator sets a hold that covers all jobs here; seldom, for no job starts under it."""
        if not really:
            return
        self._ask(holds.engage, HoldScope(scope), _SCOPES[scope], actor="op", reason="night")
        self.check("hold_engaged")

    def release(self, which: int) -> None:
        """An operator releases a hold; the jobs parked under it wait for the next sweep."""
        if self.model.holds:
            id = self._pick(self.model.holds, which)
            self._ask(holds.release, id, actor="op", reason="day")
            self.check("hold_released")

    # -- the clock, and a person with psql ---------------------------------------------------------------------

    def a_lease_passes(self, which: int) -> None:
        if alive := [job for job in self.model.jobs.values() if job.alive]:
            self._pass(self._pick(alive, which).id)
            self.check()

    def a_successor_comes(self, which: int, steps: int) -> None:
        """A worker is paused during its job, another worker claims the job, and the first one goes on."""
        if not self.steppers:
            return
        paused = self._pick(self.steppers, which)
        job = self.model.jobs[paused.claim.id]
        if job.alive:
            self._pass(job.id)
        self.sweep()
        self.time_passes()
        self.claim(2)
        for _ in range(steps):
            if paused.before:
                self._step(paused)

    def _pass(self, id: int) -> None:
        self._sql("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=id)
        self.model.jobs[id].alive = False

    def time_passes(self) -> None:
        """Each pending job becomes due, each breaker half-open, each inspection too old."""
        self._sql(
            "UPDATE outbox SET available_at = now() WHERE state = 'pending'; UPDATE breakers SET retry_at = now(); "
            "UPDATE observations SET observed_at = observed_at - interval '1 h'"
        )
        self.model.looks.clear()

    def the_name_is_taken_or_freed(self, which: int) -> None:
        """A person removes the object with this name, or makes another one where there is none."""
        label = self._pick(self.model.resources.values(), which).label
        if self.server.standing.pop(label, None) is None:
            self.server.standing[label] = Thing(label, None)

    # -- what must hold ----------------------------------------------------------------------------------------

    def check(self, *expected: str) -> None:
        """The new events are `expected`; replayed in the model they give the rows; the rows keep the promises."""
        before, events = self.rows, self._look()
        assert sorted(e["event"] for e in events) == sorted(expected)
        for event in sorted(events, key=lambda e: e["event"] == "enqueued"):  # a rollback comes before what it enqueues
            if event["event"] == "enqueued":
                event["kind"] = self.rows["job"][event["job_id"]]["kind"]
            if event["event"] == "claimed":
                assert before["job"][event["job_id"]]["due"], "claimed before its time"
            self.model.replay(event)
        for kind, models in (("job", self.model.jobs), ("resource", self.model.resources)):
            assert self.rows[kind].keys() == models.keys()
            for id, row in self.rows[kind].items():
                wanted = vars(models[id]) | ({"resource_id": models[id].resource} if kind == "job" else {})
                told = {name: value for name, value in wanted.items() if name in row}
                assert {name: row[name] for name in told} == told
        self._promises(before)

    def _promises(self, before: dict[str, Rows]) -> None:
        rows, things = self.rows["job"].values(), self.rows["resource"]
        for id, thing in things.items():
            own = [row for row in rows if row["resource_id"] == id]
            valid = [row for row in own if row["alive"] and row["started_fence"] == row["fence"]]
            assert len(valid) <= 1, f"two valid claims at work on one resource: {valid}"
            deaths = [row for row in own if row["kind"] == "deprovision" and row["state"] != "cancelled"]
            assert len(deaths) <= 1, f"two teardowns of one resource: {deaths}"
            if thing["status"] == "deleting":
                assert [d for d in deaths if d["state"] not in FINAL], f"no open teardown of {thing}"
            if thing["status"] == "restoring":
                back = [row for row in own if row["kind"] == "restore" and row["state"] not in FINAL]
                assert len(back) == 1, f"no open restore of {thing}"
            shut = [t for t in self.server.buried if t.generation == thing["generation"]]
            assert thing["status"] != "active" or not shut, f"{thing} is active and in quarantine"
            if thing["status"] == "deleted":
                told = [e for e in self.history if (e["detail"] or {}).get("seen") and e["resource_id"] == id]
                told = [e for e in told if e["event"] in ("completed", "resolved")]
                assert len(told) == 1, f"deleted without its evidence: {told}"
        for row in rows:
            was = before["job"].get(row["id"], {"fence": 0, "state": "pending"})
            assert was["fence"] <= row["fence"]
            assert was["state"] not in FINAL or {**was, "alive": 0, "due": 0} == {**row, "alive": 0, "due": 0}
            assert row["kind"] != "deprovision" or row["attempts"] <= row["max_attempts"]
        for thing, generation in self.server.destroyed:
            assert thing.generation == generation, f"{thing} was another's"
            owner = next(r for r in things.values() if r["generation"] == generation)
            assert owner["status"] in ("deleting", "deleted"), f"{thing} of a living resource was destroyed: {owner}"
            assert not owner["early"], f"{thing} was destroyed before its time: {owner}"
        dead = [thing for thing, _ in self.server.destroyed]
        assert not any(thing is other for n, thing in enumerate(dead) for other in dead[:n]), "destroyed twice"

    # -- the end -----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Workers without faults finish all jobs; then the server has no object that the database does not know."""
        try:
            if sys.exception() is None:
                self._come_to_rest()
        finally:
            for stepper in self.all_steppers:
                stepper.end()

    def _come_to_rest(self) -> None:
        if not self.paused_last:
            self._finish()
        if self.delete_last:
            for n in range(len(self.model.resources)):
                self.delete(n, 0, 3600 * (n % 2))
        while self.model.holds:
            self.release(0)
        paused, self.steppers = self.steppers, []
        for _ in range(len(self.model.jobs) * (2 * MAX_ATTEMPTS + 3) + 2):
            for resource in self.model.resources.values():
                self._grace_passes(resource)
            for job in self.model.jobs.values():
                if job.alive:
                    self._pass(job.id)
            self.time_passes()
            self.sweep()
            self.claim(1)
            self._finish()
            if all(job.state in (*FINAL, "stuck") for job in self.model.jobs.values()):
                break
        self.steppers = paused
        self._finish()
        stuck = {job.resource for job in self.model.jobs.values() if job.state == "stuck"}
        assert all(job.state in (*FINAL, "stuck") for job in self.model.jobs.values()), self.model.jobs
        for resource in self.model.resources.values():
            assert resource.status in ("active", "deleted") or resource.id in stuck, f"{resource} is forgotten"
            if resource.status == "deleted" and not resource.adopted:
                left = self.server.bearing(resource.generation)
                assert all(thing.late and thing.maker.cut_short for thing in left), f"orphans: {left}"

    def _finish(self) -> None:
        while self.steppers:
            self._step(self.steppers[0])

    # -- asking ------------------------------------------------------------------------------------------------

    def _ask(self, act: Callable[..., Any], *asked: Any, **words: Any) -> Any:
        with database.statement() as db:
            return act(db, *asked, **words)

    def _sql(self, statement: str, **words: Any) -> None:
        with database.statement() as db:
            db.execute(text(statement), words)

    def _generation(self, db: Any, id: uuid.UUID) -> str:
        return str(db.execute(text("SELECT generation FROM resources WHERE id = :id"), {"id": id}).scalar_one())

    def _look(self) -> list[Json]:
        """Read the rows, and the events since the last call."""
        with database.statement() as db:
            told = db.execute(_ROWS, {"last": self.last}).all()
        self.rows = {k: {r["id"]: r for kind, r in told if kind == k} for k in ("job", "resource", "breaker")}
        events = sorted((row for kind, row in told if kind == "event"), key=lambda e: e["id"])
        self.last = max((e["id"] for e in events), default=self.last)
        self.history += events
        return events

    @staticmethod
    def _pick(among: Any, which: int) -> Any:
        found = list(among)
        return found[which % len(found)]
