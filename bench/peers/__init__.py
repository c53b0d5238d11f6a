"""Other Python queues with jobs that do nothing, each at its best documented settings, on servers of ours.

- `PEERS`         the queues: what each makes durable, and its settings
- `drain`         jobs a second through one of them;  `latency`  from commit to start when it is idle
- `harness`       what the peers' modules share: fresh databases, worker processes, the two measures
- the others      one module for each peer: its tables, its worker, its records

The peers are installed in an environment of their own (`make peers`). This module runs in ours and starts theirs. A
peer's command line is `python -m bench.peers.<name> drain|latency --dsn DSN --redis URL`. To run all of
them with few jobs, only to see that they run: `python -m bench.peers --smoke`.
"""

import json
import subprocess
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-peers"
# Longer than the harness's own deadlines for start, work and end, since their errors say more.
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Peer:
    """One queue with one choice of settings.

    `durable` says what a crash cannot lose, and what it repeats. `scale` multiplies the jobs of a drain, so that slow
    peers do not take too long and fast ones not too short.
    """

    name: str
    module: str
    package: str
    durable: str
    settings: str
    scale: float


class PeerFailed(RuntimeError):
    """A peer failed, or did not report its figures; the message has the end of its output."""


PEERS = (
    Peer(
        "PgQueuer",
        "pgqueuer",
        "pgqueuer",
        durable="claims, 500 at a time; completions when 500 wait or 0.1 s have passed: a crash repeats them",
        settings="asyncpg, uvloop, batch_size 500, its autovacuum settings",
        scale=4.0,
    ),
    Peer(
        "PgQueuer, one by one",
        "pgqueuer_each",
        "pgqueuer",
        durable="each claim by itself, and each completion as it happens, though nothing waits for it",
        settings="the same with batch_size 1",
        scale=0.2,
    ),
    Peer(
        "Chancy",
        "chancy",
        "chancy",
        durable="claims, as many at a time as slots are free; completions every 0.1 s: a crash repeats them",
        settings="asynchronous executor, concurrency 1000, eager polling, updates sent every 0.1 s",
        scale=1.0,
    ),
    Peer(
        "DBOS",
        "dbos",
        "dbos",
        durable="claims, as many at a time as slots are free; each workflow's outcome by itself",
        settings="worker_concurrency 500 on 8 executor threads, polled every 0.02 s",
        scale=0.4,
    ),
    Peer(
        "Procrastinate",
        "procrastinate",
        "procrastinate",
        durable="each claim and each completion by itself, with an event of each",
        settings="concurrency 10, woken by LISTEN, finished jobs stay",
        scale=0.2,
    ),
    Peer(
        "Celery on Redis",
        "celery",
        "celery",
        durable="nothing: Redis in memory, no results; acknowledged before it runs, so a crash loses the job",
        settings="solo pool, prefetch 128, no results, events, gossip or rate limits; each job is an INCR",
        scale=0.4,
    ),
    Peer(
        "awa-pg",
        "awa",
        "awa-pg",
        durable="claims, as many at a time as slots are free; completions in batches of what ended within 1 ms",
        settings="queue storage, COPY, max_workers 512, 24 connections",
        scale=1.0,
    ),
)


def available() -> str | None:
    """None when the peers are installed, else a message that says what to run."""
    return None if (VENV / ".installed").exists() else 'the peers are not installed: run "make peers"'


def version(peer: Peer) -> str:
    """The installed version of the peer's package."""
    places = [str(place) for place in (VENV / "lib").glob("python*/site-packages")]
    return next(iter(distributions(name=peer.package, path=places))).version


def drain(peer: Peer, dsn: str, redis_url: str, jobs: int, processes: int) -> float:
    """Jobs a second, from the first pick-up to the last recorded end, of `jobs` * `peer.scale` no-op jobs.

    `dsn` is a superuser's: a database is created for the peer and dropped. Redis's database 15 is emptied, so only one
    call may run at a time. Raises PeerFailed.
    """
    scaled = max(1, round(jobs * peer.scale))
    return _run(peer, "drain", dsn, redis_url, "--jobs", str(scaled), "--processes", str(processes))["rate"]


def latency(peer: Peer, dsn: str, redis_url: str, count: int) -> dict[str, float]:
    """`p50` and `p99` in ms, from the enqueue's commit to the function's first line; one job at a time, else idle.

    It uses one worker process, and servers as in `drain`. Raises PeerFailed.
    """
    return _run(peer, "latency", dsn, redis_url, "--count", str(count))


def _run(peer: Peer, act: str, dsn: str, redis_url: str, *words: str) -> dict[str, float]:
    if reason := available():
        raise PeerFailed(reason)
    argv = [VENV / "bin" / "python", "-m", f"bench.peers.{peer.module}", act, "--dsn", dsn, "--redis", redis_url]
    # In a session of its own: Ctrl-C in the terminal goes only to us, and we then let the peer clean up.
    with subprocess.Popen(
        [*argv, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        except BaseException as stopped:
            process.terminate()
            _, errors = process.communicate()
            if isinstance(stopped, subprocess.TimeoutExpired):
                raise PeerFailed(f"{peer.name}: {act} had not ended after {TIMEOUT_SECONDS} s{_tail(errors)}") from None
            raise
    if process.returncode:
        raise PeerFailed(f"{peer.name}: {act} ended with code {process.returncode}{_tail(errors)}")
    figures: dict[str, float] = json.loads(output)
    return figures


def _tail(output: str, lines: int = 15) -> str:
    return "".join(f"\n{line}" for line in output.splitlines()[-lines:])
