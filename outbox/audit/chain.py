"""The chain of a resource's events: the hash that each event must have."""

from dataclasses import dataclass

# The hash that `row` must have. The trigger has an expression of its own for it (migrations/versions/0006).
LINK = """sha256(coalesce({last}, '') || convert_to(CAST(jsonb_build_array(
        {row}.id, CAST(extract(epoch FROM {row}.at) AS text), {row}.job_id, {row}.resource_id, {row}.fence,
        {row}.seq, {row}.event, {row}.actor, {row}.reason, {row}.detail) AS text), 'UTF8'))"""
# Every event, and whether it follows from the event before it; after a gap it does not.
LINKS = f"""
    SELECT event.*, seq = lag(seq, 1, CAST(0 AS bigint)) OVER chain + 1
                AND hash = {LINK.format(last="lag(hash) OVER chain", row="event")} AS holds
      FROM events AS event {{which}}
    WINDOW chain AS (PARTITION BY resource_id ORDER BY seq)"""


@dataclass(frozen=True)
class Chain:
    """The head of a resource's chain. `verified`: no event was changed, removed or inserted."""

    seq: int
    hash: str | None
    verified: bool
