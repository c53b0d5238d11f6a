"""The outbox against a reference model, in any order; and what plays it finds each guard that is gone."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hypothesis.configuration
import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from outbox import breakers
from outbox import db as database
from tests.support.stateful import MAX_ATTEMPTS, Outbox
from tests.support.transitions import module_of
from worker import run

EXAMPLES = 20
MANY_EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "300"))  # of the proof; a night's run has more
STEPS = 40
# Of the plays against a missing guard: 300 of the first find each, most often. Hypothesis also draws constants that it
# finds in the modules imported so far, so that the plays differ with the tests that ran before.
SEEDS = (6, 2, 3, 7, 1, 4)


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """Time passes only where the machine says so."""
    return env | {
        "DEPROVISIONER_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "DEPROVISIONER_LEASE_SECONDS": "3600",
        "DEPROVISIONER_BACKOFF_BASE_SECONDS": "3600",
        "DEPROVISIONER_BACKOFF_MAX_SECONDS": "86400",
    }


@pytest.fixture
def still(settled: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """And nothing is waited for, said, or left in the tree."""
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)
    monkeypatch.setattr(run, "BUSY_DELAY_SECONDS", 3600.0)
    monkeypatch.setattr(breakers, "PAUSE_SECONDS", 3600)
    monkeypatch.setattr(breakers, "LONGEST_PAUSE_SECONDS", 3600)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def _play(examples: int, *, mutant: int | None = None) -> None:
    """Plays of the machine: any, or against a missing guard those of one seed."""
    profile = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if mutant is None else [Phase.generate],
    )
    run_state_machine_as_test(Outbox if mutant is None else seed(mutant)(partial(Outbox)), settings=profile)


def _search() -> None:
    """Plays of one seed after another, until one finds something."""
    for each in SEEDS:
        _play(300, mutant=each)


@pytest.mark.timeout(120 + EXAMPLES * 10)
def test_random_sequences_of_actions_keep_the_promises(still: None) -> None:
    _play(EXAMPLES)


@pytest.mark.proof
@pytest.mark.timeout(120 + MANY_EXAMPLES * 10)
def test_many_more_random_sequences_keep_the_promises(still: None) -> None:
    _play(MANY_EXAMPLES)


# A guard, and what its statement says instead. The first two are found at once.
QUICK = 2
MUTANTS = {
    "one DELETE": ("_ENQUEUE", " AND status IN ('active', 'provisioning')", ""),
    "lease of a sweep": ("_SWEEP", " AND lease_expires_at < now()", ""),
    "fence of a start": ("_START_DEPROVISION", " AND outbox.fence = asked.fence", ""),
    "state of a complete": ("_COMPLETE", " AND claimed_by IS NOT NULL", ""),
    "lease of a start": ("_START_DEPROVISION", " AND lease_expires_at > clock_timestamp()", ""),
    "one job at a time": ("_START_DEPROVISION", "AND other.claimed_by IS NOT NULL", "AND false"),
    "hold of a start": ("_START_DEPROVISION", "WHERE holds.released_at IS NULL", "WHERE false"),
    "fence of a complete": ("_COMPLETE", " AND outbox.fence = asked.fence", ""),
    "fence of a birth's start": ("_START_PROVISION", " AND outbox.fence = asked.fence", ""),
    "lease of a birth's start": ("_START_PROVISION", " AND lease_expires_at > clock_timestamp()", ""),
    "resource of a birth's start": ("_START_PROVISION", "ELSE 'provisioning' END", "ELSE resource.status END"),
    "fence of an activate": ("_ACTIVATE", " AND fence = :fence", ""),
    "start before a defer": ("_DEFER", " AND started_fence IS DISTINCT FROM fence", ""),
    "fence of a rollback": ("_ROLLBACK", " AND fence = :fence", ""),
    "growing fence": ("_CLAIM", "fence = fence + 1, attempts", "fence = greatest(fence, 1), attempts"),
    "fence of a heartbeat": ("_HEARTBEAT", " AND outbox.fence = asked.fence", ""),
    "time of a start": ("_START_DEPROVISION", "coalesce(purge_at <= clock_timestamp(), true)", "true"),
    "mark before a restore": (
        "_RESTORE",
        "started_step IS DISTINCT FROM 'destroy' AND (step IS NOT NULL OR started_fence IS NULL)",
        "true",
    ),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "guard", [pytest.param(guard, marks=[pytest.mark.proof] if n >= QUICK else []) for n, guard in enumerate(MUTANTS)]
)
def test_the_model_finds_a_missing(guard: str, still: None, monkeypatch: pytest.MonkeyPatch) -> None:
    constant, words, instead = MUTANTS[guard]
    home = module_of(constant)
    whole = str(getattr(home, constant))
    assert words in whole
    monkeypatch.setattr(home, constant, text(whole.replace(words, instead)))
    if guard == "one DELETE":  # the unique index is a guard of its own
        with database.statement() as db:
            db.exec_driver_sql("DROP INDEX outbox_one_deprovision")
    with pytest.raises((AssertionError, IntegrityError)):
        _search()
