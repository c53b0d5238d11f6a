"""A SIGKILL before and after each step of a job: the job still ends, and its effect happens once."""

import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from outbox.states import TRANSITIONS
from tests.support import crash_matrix
from tests.support.crash_cells import STORIES, Install, Story
from tests.support.crash_matrix import CELLS, STEPS, Cell, Outcome
from tests.support.parallel_installs import installs
from tests.support.servers import Servers

pytestmark = pytest.mark.matrix
INSTALLS = 8


class Matrix:
    """Runs several cells at once, each on its own install; each test waits for its own cell."""

    def __init__(self, new_install: Callable[[], Install]) -> None:
        self._new_install = new_install
        self._free: queue.SimpleQueue[Install] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(INSTALLS, thread_name_prefix="install")
        self.begun: dict[Cell, Future[Any]] = {}
        self.outcomes: dict[Cell, Outcome] = {}
        self.reached: set[tuple[str, str]] = set()

    def begin(self, cell: Cell, act: Callable[[Story], Any]) -> Future[Any]:
        self.begun[cell] = self._pool.submit(self._run, cell, act)
        return self.begun[cell]

    def _run(self, cell: Cell, act: Callable[[Story], Any]) -> Any:
        try:
            install = self._free.get_nowait()
        except queue.Empty:
            install = self._new_install()
        story = STORIES[cell.story](install, cell)
        done = act(story)  # the install of a failed cell is not used again
        self._free.put(install)
        if (reached := story.folder / "reached").exists():
            self.reached |= {(cell.kind, name) for name in reached.read_text().splitlines()}
        return done

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def matrix(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Matrix]:
    with installs(servers, template, tmp_path_factory.mktemp("crash")) as new_install:
        made = Matrix(new_install)
        for item in request.session.items:
            if cell := getattr(item, "callspec", None) and item.callspec.params.get("cell"):  # type: ignore[attr-defined]
                made.begin(cell, Story.live)
        yield made
        made.close()


# Enough to notice a broken recovery: the boundaries where an effect, or its record, may be lost.
QUICK = {
    (story, kind, at)
    for story, boundaries in {
        "deprovision": ("start", "DROP DATABASE name", "EVAL UNLINK", "complete"),
        "provision": ("start", "CREATE DATABASE name TEMPLATE", "SET generation key", "activate"),
        "delete (API)": ("enqueue",),
        "restore (API)": ("restore",),
        "quarantine, then restore": ("ALTER DATABASE old RENAME", "EXEC ACL SETUSER"),
        "grace over, then restore": ("start",),
        "restore": ("COMMIT", "give_back"),
        "worker lost": ("sweep",),
    }.items()
    for kind in ("postgres", "redis")
    for at in boundaries
}


def marked(cell: Cell) -> Any:
    quick = (cell.story, cell.kind, cell.at) in QUICK
    return pytest.param(cell, id=str(cell), marks=[] if quick else [pytest.mark.proof])


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_a_killed_process_leaves_a_job_that_ends_once(matrix: Matrix, cell: Cell) -> None:
    matrix.outcomes[cell] = matrix.begun[cell].result()


@pytest.mark.proof
@pytest.mark.parametrize(("story", "kind"), STEPS, ids=str)
def test_the_matrix_lists_every_boundary_of_a_story_without_a_crash(matrix: Matrix, story: str, kind: str) -> None:
    assert matrix.begin(Cell(story, kind, "nowhere", "never"), Story.run_without_crash).result() == list(
        STEPS[story, kind]
    )


# Which transitions have no cell, and what shows them instead.
WITHOUT_A_CELL = {
    "set_aside": "of a person's recovery; tests/deprovisioner/test_recover.py kills it between its batches",
    "close": "as set_aside",
    "release": "it destroys nothing; tests/worker/test_release.py has an attempt that died behind its start",
    "let_go": "as release",
    "abandon": "one statement of a person's, which touches no backend; tests/outbox/test_retire.py",
}


def test_every_transition_and_every_story_has_a_cell() -> None:
    assert {t.name for t in TRANSITIONS} - {cell.at for cell in CELLS} == set(WITHOUT_A_CELL)
    assert {cell.story for cell in CELLS} == set(STORIES)


@pytest.mark.skipif(crash_matrix.WRITE in os.environ, reason="the table is about to be written")
def test_the_table_in_the_guarantees_lists_exactly_these_cells() -> None:
    assert list(crash_matrix.written()) == crash_matrix.rows(), "make it anew: `make matrix`"


@pytest.mark.proof
def test_the_table_in_the_guarantees_has_the_outcomes_of_this_run(
    matrix: Matrix, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs last, for it needs all outcomes: every transition happened, no boundary has no cell, the file is right."""
    if len(matrix.outcomes) < len(CELLS):
        pytest.skip(f"{len(matrix.outcomes)} of {len(CELLS)} cells came out right; only a whole matrix is judged")
    arrows = {(cell.at, outcome.arrow) for cell, outcome in matrix.outcomes.items() if cell.moment == "after"}
    assert {(t.name, str(t.target)) for t in TRANSITIONS if t.name not in WITHOUT_A_CELL} <= arrows
    visited = {(cell.kind, cell.at.partition("#")[0]) for cell in CELLS}
    control = {at for _, at in visited if at.islower() and at != "end sessions"}
    assert {(kind, name) for kind, name in matrix.reached if name not in control} <= visited
    with capsys.disabled():
        print(f"\n\n{crash_matrix.table(matrix.outcomes)}\n")
    if os.environ.get(crash_matrix.WRITE):
        crash_matrix.write(matrix.outcomes)
    told = crash_matrix.written()
    for cell, outcome in matrix.outcomes.items():
        said = told[cell.story, cell.kind, cell.at][cell.moment == "after"]
        assert said.rpartition(", ")[0] == outcome.safe, f"{cell}: the file says {said!r}; make it anew: `make matrix`"
