"""`python -m tests.soak --minutes 10`: everything at once, then a verdict. Exit code 0 only when nothing is broken.

Servers and product run in a folder of their own; everything that was started is ended, on Ctrl-C too.
"""

import argparse
import datetime as dt
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import make_dsn

from deprovisioner.demo.witnesses import Holding
from tests.soak.checker import Verdict, judge, quantile, timeline
from tests.soak.faults import Faults
from tests.soak.load import Load
from tests.soak.stage import LEASE_SECONDS, Stage

FLOOR_A_MINUTE = 100  # teardowns; fewer prove little, whatever the verdict
QUIET_SECONDS = 180  # for all that was accepted to be gone, once the faults have stopped
LINE_SECONDS = 10

Json = dict[str, Any]


class Soak:
    """One soak."""

    def __init__(self, minutes: float, seed: int) -> None:
        self.minutes = minutes
        self.seed = seed
        self.home = Path(tempfile.mkdtemp(prefix="deprovisioner-soak-"))
        self.stage = Stage(self.home)
        self.stuck: list[Json] = []
        self.restless = ""

    def run(self) -> Json:
        """Start, storm, heal, judge."""
        try:
            _say(f"seed {self.seed}, home {self.home}")
            self.stage.start()
            self.load = Load(self.stage, self.seed)
            self._meanwhile(self.load.prepare)
            self.began = dt.datetime.now(dt.UTC)
            self.faults = Faults(self.stage, self.seed)
            self.load.begin()
            self._storm()
            self.stage.heal()
            self.load.end()
            self._until(lambda: self.load.ended)
            _say("the faults are over; waiting until everything accepted is gone")
            self._meanwhile(self._calm_down)
            _say("asking the servers")
            waited = {job["resource_id"] for job in self.stuck}
            return self._told(self._meanwhile(lambda: judge(self.stage, self.load, waited)))
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave servers behind
            self.stage.stop()

    def _storm(self) -> None:
        end, line = time.monotonic() + self.minutes * 60, 0.0
        while (now := time.monotonic()) < end and not self.load.ended:
            self.stage.tend()
            self.faults.tick()
            if now >= line:
                line = now + LINE_SECONDS
                self._progress()
            time.sleep(0.05)

    def _progress(self) -> None:
        lives = list(self.load.lives.values())
        _say(
            f"{int(time.monotonic() - self.faults.began):>4} s  born {sum(bool(life.filled) for life in lives)}, "
            f"DELETEd {sum(life.asked > life.refused for life in lives)}, newcomers {len(self.load.newcomers)}, "
            f"faults {len(self.faults.struck)}"
            + (f", last: {': '.join(self.faults.struck[-1][1:])}" if self.faults.struck else "")
        )

    def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self.stage.tend()
            time.sleep(0.05)

    def _meanwhile(self, work: Callable[[], Any]) -> Any:
        """`work()` in a thread, while this one keeps the processes going."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        self._until(future.done)
        return future.result()

    # -- after the storm ---------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """Until nothing is on its way; what is stuck is re-driven once, as an operator would."""
        deadline, driven = time.monotonic() + QUIET_SECONDS, set()
        while time.monotonic() < deadline:
            for job in self.load.operator.listing("/v1/jobs", state="stuck"):
                if job["id"] not in driven:
                    driven.add(job["id"])
                    self._redrive(job)
            self.restless = self._on_its_way()
            if not self.restless:
                time.sleep(LEASE_SECONDS / 2)  # a worker that has just woken may be undoing a birth
                return
            time.sleep(0.3)

    def _redrive(self, job: Json) -> None:
        """Clear the way of what stands under the resource's name, then try again."""
        self.stuck.append({key: job[key] for key in ("id", "resource_id", "stuck_reason", "last_error")})
        for newcomer in self.load.newcomers:
            if newcomer.resource == job["resource_id"] and newcomer.oid:
                old, new = newcomer.holding.names["database"], f"kept_{newcomer.oid}"
                words = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
                self.stage.pg[newcomer.backend].query(words)  # type: ignore[arg-type]
                url = make_dsn(newcomer.holding.url, dbname=new)
                newcomer.holding = Holding("postgres", newcomer.holding.names | {"database": new}, url)
        words = {"reason": "soak: tried once more when all was well", "fence": job["fence"]}
        self.load.operator.ask("POST", f"{job['url']}/redrive", json=words)

    def _on_its_way(self) -> str:
        ask = self.load.operator.listing
        for status in ("provisioning", "deleting", "restoring"):
            if found := ask("/v1/resources", status=status):
                return f"{len(found)} {status}, such as {found[0]['id']}"
        if found := [r for r in ask("/v1/resources", status="active") if r["expires_at"]]:
            return f"{len(found)} past their expires_at, such as {found[0]['id']}"
        return ""

    def _told(self, verdict: Verdict) -> Json:
        if self.restless:
            verdict.broken["restless"] = [f"not quiet after {QUIET_SECONDS} s: {self.restless}"]
        total = sum(verdict.teardowns.values())
        floor = int(FLOOR_A_MINUTE * self.minutes)
        step = 30 if self.minutes > 2 else 5
        return {
            "ok": total > floor and not any(verdict.broken.values()),
            "seed": self.seed,
            "minutes": self.minutes,
            "teardowns": {"total": total, "floor": floor, **verdict.teardowns},
            "broken": verdict.broken,
            "facts": verdict.facts,
            "stuck_and_redriven": self.stuck,
            "seconds_from_delete_to_gone": {
                "p50": quantile(verdict.seconds, 0.5),
                "p99": quantile(verdict.seconds, 0.99),
                "max": quantile(verdict.seconds, 1),
            },
            "faults": dict(Counter(kind for _, kind, _ in self.faults.struck)),
            "struck": [{"at": round(at, 1), "kind": kind, "met": met} for at, kind, met in self.faults.struck],
            "answers": dict(self.load.told),
            "timeline": timeline(verdict.ended, self.faults.struck, self.began, step),
            "home": str(self.home),
        }


def show(told: Json) -> None:
    """The report for a person."""
    count = told["teardowns"]
    print("\nwhen     gone                            faults")
    print("\n".join(told["timeline"]))
    print("\nfaults: " + ", ".join(f"{kind} {times}" for kind, times in sorted(told["faults"].items())))
    print("answers: " + ", ".join(f"{code} {times}" for code, times in sorted(told["answers"].items())))
    print(", ".join(f"{what}: {number}" for what, number in told["facts"].items()))
    print(f"stuck and re-driven once: {len(told['stuck_and_redriven'])}")
    for job in told["stuck_and_redriven"][:20]:
        print(f"  job {job['id']} of {job['resource_id']}: {job['stuck_reason']}: {job['last_error']}")
    times = told["seconds_from_delete_to_gone"]
    print(
        "from the accepted DELETE to gone, the stuck aside: "
        + ", ".join(f"{name} {value:.2f} s" for name, value in times.items())
    )
    print(f"\nteardowns {count['total']} (postgres {count.get('postgres', 0)}, redis {count.get('redis', 0)})")
    for what, offenders in told["broken"].items():
        print(f"{what} {len(offenders)}")
        for offender in offenders[:10]:
            print("    " + offender.replace("\n", "\n    "))
    if count["total"] <= count["floor"]:
        print(f"too few: the floor is {count['floor']}")
    print(f"seed {told['seed']}: {'HELD' if told['ok'] else 'BROKEN; logs are kept in ' + told['home']}")


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    words.add_argument("--minutes", type=float, default=10)
    words.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    words.add_argument("--json", action="store_true", help="the report as one JSON document")
    words.add_argument("--keep", action="store_true", help="keep the servers' folder")
    given = words.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    soak = Soak(given.minutes, given.seed)
    code = 1
    try:
        told = soak.run()
        code = 0 if told["ok"] else 1
        print(json.dumps(told, indent=2)) if given.json else show(told)
    except KeyboardInterrupt:
        code = 130
        _say("stopped; nothing was judged")
    except Exception:  # noqa: BLE001 - whatever it was, what was started has been stopped
        traceback.print_exc()
    if code == 1 or given.keep:
        _say(f"kept: {soak.home}")
    else:
        shutil.rmtree(soak.home, ignore_errors=True)
    sys.stdout.flush()
    os._exit(code)  # customers of a broken-off soak may still be waiting for an answer


def _say(text: str) -> None:
    with suppress(BrokenPipeError):
        print(f"soak: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
