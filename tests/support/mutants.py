"""Takes one guard at a time out of the product, and shows that a test notices: `python -m tests.support.mutants`.

The guards are data, in `tests/mutations/`. Each is taken out of a copy of the tree, and the tests that should notice
run there. A mutant is killed only by a test that looked and saw: what merely does not run proves nothing about a guard.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

from tests.mutations import EQUIVALENT, MUTANTS, Mutant, Stale
from tests.support import accounts
from tests.support.servers import KEPT, serving

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("deprovisioner", "outbox", "api", "worker", "migrations", "tests")
TIMEOUT_SECONDS = 150  # of one mutant; the slowest selection takes ten
TEST_TIMEOUT_SECONDS = 60  # for one test; a test that times out does not count as a kill
ALL_TIMEOUT_SECONDS = 600  # of every selection together
# How a failed test begins its message when it saw something. Beside assertions: the product's own refusals, a
# constraint that spoke where a guard should have, a statement that waited where it should not. A typo says none of it.
SAW = re.compile(
    r"assert |AssertionError|Failed: DID NOT RAISE|outbox\.errors\.|sqlalchemy\.exc\.IntegrityError"
    r"|.*psycopg2\.errors\.(QueryCanceled|LockNotAvailable)"
)


# Sessions are forked from a process that has imported what they import of others: that is most of a start.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "hypothesis", "tests.conftest", "tests.support.preload"])
_LOCK = threading.Lock()  # multiprocessing reaps every child whenever one is started, which two threads must not do


@dataclass(frozen=True)
class Result:
    """What became of a mutant: killed, SURVIVED, STALE or ERROR; `by` is the test that noticed, or what went wrong."""

    name: str
    verdict: str
    by: str
    saw: str
    seconds: float


class Copy:
    """A copy of the tree, in which tests import the copy and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._life = ExitStack()
        self.tree = folder / "tree"
        self.report = folder / "report.xml"
        self._log = folder / "log"
        self._temporary = folder / "tmp"
        folder.mkdir(mode=0o711)  # embedded PostgreSQL passes through it as another user
        self._temporary.mkdir(mode=0o711)
        listed = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        # Servers are kept from mutant to mutant: to start them is most of a run.
        self._servers = self._life.enter_context(serving())
        self.env = os.environ | {
            "PYTHONPATH": str(self.tree),
            "TMPDIR": str(self._temporary),
            KEPT: self._servers.to_json(),
            "TEST_PATIENCE_SECONDS": "20",
        }
        self.env.pop("PYTEST_ADDOPTS", None)
        self._is_what_python_imports()

    def _is_what_python_imports(self) -> None:
        """From anywhere, so in subprocesses too: PYTHONPATH comes before the editable install."""
        asked = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
        argv = [sys.executable, "-c", asked]
        told = subprocess.check_output(argv, cwd="/", env=self.env, text=True).splitlines()
        assert told == [str(self.tree / name / "__init__.py") for name in PACKAGES], told

    def run(self, tests: Iterable[str], timeout: float) -> int:
        """pytest's exit code, its report in `report`; 124 when it took longer."""
        self._sweep_up()
        self.report.unlink(missing_ok=True)
        words = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_SECONDS}", f"--junitxml={self.report}"]
        session = _CONTEXT.Process(target=_session, args=(self.tree, self.env, [*words, *tests], self._log))
        with _LOCK:
            session.start()
        if wait([session.sentinel], timeout):
            with _LOCK:
                session.join()
            return int(session.exitcode or 0)
        os.kill(session.pid or 0, signal.SIGINT)  # it ends its processes, which SIGKILL would leave behind
        wait([session.sentinel], 30)
        with _LOCK:
            session.kill()
            session.join()
        return 124

    @property
    def said(self) -> str:
        """The end of what the last run said."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _sweep_up(self) -> None:
        """What the tests before have left on the servers; a test that failed leaves more than others."""
        for server in (self._servers.control, self._servers.pg):
            for gid, name in server.query("SELECT gid, database FROM pg_prepared_xacts"):
                server.query(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true CONNECTION LIMIT -1')
                server.query(f"ROLLBACK PREPARED '{gid}'", database=name)
            for (slot,) in server.query("SELECT slot_name FROM pg_replication_slots"):
                server.query("SELECT pg_drop_replication_slot(%s)", slot)
            server.query("DELETE FROM pg_subscription")  # such a database could not be entered, nor dropped
            for name in server.databases() - {"postgres", "template0", "template1", accounts.NAME}:
                if server.query("SELECT 1 FROM pg_database WHERE datname = %s AND datistemplate", name):
                    server.query(f'ALTER DATABASE "{name}" IS_TEMPLATE false')
                server.query(f'DROP DATABASE "{name}" WITH (FORCE)')
            for role in server.roles() - {"postgres", accounts.NAME}:
                if not role.startswith("pg_"):
                    server.query(f'DROP OWNED BY "{role}"')
                    server.query(f'DROP ROLE "{role}"')
        for cache in (self._servers.redis, self._servers.broker):
            cache.client.flushall()
            if others := cache.users() - {"default", accounts.NAME}:
                cache.client.acl_deluser(*others)

    def close(self) -> None:
        """Stop its servers."""
        self._life.close()

    def without(self, mutant: Mutant) -> Result:
        """Take the guard out, run the tests that should notice, and put it back."""
        began = time.monotonic()

        def came(verdict: str, by: str, saw: str = "") -> Result:
            return Result(mutant.name, verdict, by, saw, round(time.monotonic() - began, 1))

        file = self.tree / mutant.file
        honest = file.read_text()
        try:
            self._write(file, mutant.applied(honest))
            code = self.run(mutant.tests, TIMEOUT_SECONDS)
        except Stale as error:
            return came("STALE", str(error))
        finally:
            self._write(file, honest)
        if code == 0:
            return came("SURVIVED", " ".join(mutant.tests))
        test, saw = self._first_failure()
        if code == 1 and test and SAW.match(saw):
            return came("killed", test, saw)
        return came("ERROR", test or f"pytest's exit code was {code}", saw or self.said)

    @staticmethod
    def _write(file: Path, text: str) -> None:
        """Without its bytecode, which is compared by second and size: a mutant may have both in common."""
        file.write_text(text)
        for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            stale.unlink()

    def _first_failure(self) -> tuple[str, str]:
        """The test whose body failed, and the first line of why. A failed fixture does not count."""
        if self.report.exists():
            for case in ET.parse(self.report).iter("testcase"):
                if (failure := case.find("failure")) is not None:
                    test = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
                    return test, (failure.get("message") or "").partition("\n")[0]
        return "", ""


def _session(tree: Path, env: dict[str, str], words: list[str], log: Path) -> None:
    """Be `python -m pytest` in a copy of the tree. This process was forked with ROOT's product imported."""
    import pytest

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    for name in PACKAGES:
        assert importlib.import_module(name).__file__ == str(tree / name / "__init__.py")
    sys.exit(int(pytest.main([*words, "-W", "ignore::pytest.PytestAssertRewriteWarning"])))


def run(mutants: Sequence[Mutant], copies_at_once: int) -> list[Result]:
    """First all the tests with every guard in its place, else nothing is proven; then one guard less at a time."""
    home = Path(tempfile.mkdtemp(prefix="deprovisioner-mutants-"))
    home.chmod(0o711)
    copies: list[Copy] = []
    pool = ThreadPoolExecutor(copies_at_once)
    try:
        for n in range(min(copies_at_once, len(mutants))):
            copies.append(Copy(home / f"copy-{n}"))
        _all_green(pool, copies, mutants)
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)

        def one(mutant: Mutant) -> Result:
            copy = free.get()
            try:
                result = copy.without(mutant)
                # What could not run, such as a process that a busy machine did not start in time, may run now.
                return copy.without(mutant) if result.verdict == "ERROR" else result
            finally:
                free.put(copy)

        results = []
        for done in as_completed([pool.submit(one, mutant) for mutant in mutants]):
            results.append(done.result())
            _say(f"{len(results):>3}/{len(mutants)} {_row(results[-1])}")
        order = {mutant.name: n for n, mutant in enumerate(mutants)}
        return sorted(results, key=lambda result: order[result.name])
    finally:
        pool.shutdown(cancel_futures=True)
        for copy in copies:
            copy.close()
        shutil.rmtree(home, ignore_errors=True)


def _all_green(pool: ThreadPoolExecutor, copies: Sequence[Copy], mutants: Sequence[Mutant]) -> None:
    began = time.monotonic()
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    shares = [(copy, tests[n :: len(copies)]) for n, copy in enumerate(copies)]

    def green(copy: Copy, share: list[str]) -> int:
        # Twice, for a busy machine may start a process too late.
        return copy.run(share, ALL_TIMEOUT_SECONDS) and copy.run(share, ALL_TIMEOUT_SECONDS) if share else 0

    codes = pool.map(lambda share: green(*share), shares)
    for code, copy in zip(codes, copies, strict=True):
        if code:
            raise SystemExit(f"the tests are not green with every guard in place:\n{copy.said}")
    _say(f"    {len(tests)} selections are green with every guard in place, {time.monotonic() - began:.0f} s")


def _row(result: Result) -> str:
    return f"{result.verdict:<8} {result.seconds:>5.1f} s  {result.name:<52} {result.by}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """0 when every mutant was killed, but for the equivalent ones, which nothing kills."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="NAME", help="only mutants whose name contains this, equivalent ones too")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument(
        "--copies", type=int, default=os.cpu_count(), help="how many at once; each runs its own servers"
    )
    words = parser.parse_args()
    known = [*MUTANTS, *(EQUIVALENT if words.only else ())]
    wanted = [mutant for mutant in known if (words.only or "") in mutant.name]
    if not wanted:
        parser.error(f"no mutant's name contains {words.only!r}")
    began = time.monotonic()
    results = run(wanted, words.copies)
    equal = {mutant.name for mutant in EQUIVALENT}
    bad = [result for result in results if result.verdict != ("SURVIVED" if result.name in equal else "killed")]
    if words.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print("\n".join(["", *map(_row, results)]))
        for mutant, why in EQUIVALENT.items():
            print(f"{'equal':<8} {'':>7}  {mutant.name:<52} {why}")
        for result in bad:
            print(f"\n{result.verdict}: {result.name}\n  {result.by}\n  {result.saw}")
    _say(f"\n{len(results) - len(bad)} of {len(results)} mutants came out right in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
