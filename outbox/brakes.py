"""Brakes: how many teardowns of a backend or of a tenant may start in a window, counted exactly over all workers.

A brake counts resources, not attempts. Workers that start teardowns under one brake take turns (an advisory lock until
their commit), so a limit is never exceeded. Without a brake, workers do not wait for each other.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from outbox.errors import BrakeHit, Busy
from outbox.rows import Claim, Json
from outbox.settings import LONGEST_WINDOW, Brake

# Fewer teardowns than this are harmless, even where they are a large percentage of a small tenant.
PERCENT_FROM = 5

# The lock of one brake, until commit: whoever counts under it, engages its hold or releases that hold.
TURN = "pg_advisory_xact_lock(hashtextextended('brake:' || scope || ':' || subject, 0))"
# A worker that stands still while it has the lock loses it after 2 s; a worker that waits 5 s for it gives up and tries
# again later.
_TAKE_TURNS = text(f"""
    SET LOCAL idle_in_transaction_session_timeout = '2s';
    SET LOCAL lock_timeout = '5s';
    SELECT {TURN}
      FROM unnest(CAST(:scopes AS text[]), CAST(:subjects AS text[])) AS asked (scope, subject)""")
# SQLSTATEs of a wait that failed: lock timeout, statement timeout, deadlock.
_LOCK_NOT_GRANTED = ("55P03", "57014", "40P01")

# The scope's resources that exist and whose start is not counted; `{0}` is `backend` or `tenant`, each with an index.
_LIVE = """SELECT FROM resources
                       WHERE counted.scope = '{0}' AND resources.{0} = counted.subject
                         AND status IN ('active', 'deleting')
                         AND (resources.id = :resource_id
                              OR NOT EXISTS (SELECT FROM brake_starts
                                              WHERE brake_starts.scope = counted.scope
                                                AND brake_starts.subject = counted.subject
                                                AND brake_starts.resource_id = resources.id AND at > since))"""

# The lock was taken by an earlier statement, so this statement's snapshot has all that its earlier holders committed.
# `existing`: the scope's resources that existed when the window began or were added since. Counting stops where more
# of them would not change the verdict.
_TAKE = text(f"""
    WITH asked AS (
        SELECT * FROM unnest(CAST(:scopes AS text[]), CAST(:subjects AS text[]), CAST(:limits AS int[]),
                             CAST(:windows AS interval[]), CAST(:percents AS numeric[]))
               AS asked (scope, subject, most, span, percent)
    ), since AS (
        SELECT asked.*, greatest(clock_timestamp() - span, (
               SELECT max(released_at) FROM holds
                WHERE cause = 'brake' AND holds.scope = asked.scope AND holds.subject = asked.subject)) AS since
          FROM asked
    ), counted AS (
        SELECT since.*, (
               SELECT count(*) FROM (
                      SELECT FROM brake_starts
                       WHERE brake_starts.scope = since.scope AND brake_starts.subject = since.subject
                         AND at > since AND resource_id <> :resource_id
                       LIMIT most) AS starts) AS taken
          FROM since
    ), judged AS (
        SELECT counted.*, taken + (
               SELECT count(*) FROM (
                      {_LIVE.format("backend")} UNION ALL {_LIVE.format("tenant")}
                       LIMIT CAST(ceil((taken + 1) * 100 / percent) AS bigint)) AS live) AS existing
          FROM counted
    ), hit AS (
        SELECT scope, subject, taken, existing, clock_timestamp() AS judged_at FROM judged
         WHERE taken >= most
            OR (percent < 100 AND taken + 1 >= {PERCENT_FROM} AND (taken + 1) * 100 > percent * existing)
    ), forgotten AS (
        DELETE FROM brake_starts USING asked
         WHERE brake_starts.scope = asked.scope AND brake_starts.subject = asked.subject
           AND brake_starts.at < clock_timestamp() - CAST(:longest AS interval)
           AND brake_starts.resource_id <> :resource_id
    ), took AS (
        INSERT INTO brake_starts (scope, subject, resource_id)
        SELECT scope, subject, :resource_id FROM asked
            ON CONFLICT (scope, subject, resource_id) DO UPDATE SET at = clock_timestamp()
         WHERE brake_starts.at <= (SELECT since FROM since WHERE since.scope = excluded.scope
                                                             AND since.subject = excluded.subject)
    )
    SELECT * FROM hit""")


def take(db: Connection, claim: Claim, brakes: Sequence[Brake]) -> None:
    """Count this teardown under its brakes, in the transaction of its `start`. Raises BrakeHit, Busy."""
    asked = sorted(brakes, key=lambda brake: (brake.scope, brake.subject))  # one order for all: no deadlock
    words = {"scopes": [brake.scope for brake in asked], "subjects": [brake.subject for brake in asked]}
    try:
        db.execute(_TAKE_TURNS, words)
        hit = db.execute(_TAKE, words | _limits(asked) | {"resource_id": claim.resource_id}).first()
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) not in _LOCK_NOT_GRANTED:
            raise
        raise Busy(f"job {claim.id}: other workers are starting teardowns under the same brake; try again") from error
    if hit is not None:
        brake = next(brake for brake in asked if (brake.scope, brake.subject) == (hit.scope, hit.subject))
        raise BrakeHit(brake.scope, brake.subject, hit.judged_at, _why(brake, hit.taken, hit.existing))


def _limits(asked: Sequence[Brake]) -> Json:
    return {
        "limits": [brake.limit for brake in asked],
        "windows": [brake.window for brake in asked],
        "percents": [brake.max_percent for brake in asked],
        "longest": LONGEST_WINDOW,  # another worker may be configured with a longer window than this one
    }


def _why(brake: Brake, taken: int, existing: int) -> str:
    if taken >= brake.limit:
        return f"brake {brake}: {taken} teardowns have started within it; the next one waits for an operator"
    return (
        f"brake {brake}: {taken} of its {existing} live resources were torn down within the window, and one more would "
        f"exceed {brake.max_percent} % (max_percent, from the {PERCENT_FROM}th on); it waits for an operator"
    )
