"""A page of a listing, and the cursor to the next page."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from outbox.errors import BadCursor


@dataclass(frozen=True)
class Page:
    """One page of a listing; `next_cursor` is None on the last page."""

    items: list[Any]
    next_cursor: str | None


def select_columns(cls: type, table: sa.Table, alias: str, **equal: Any) -> "sa.Select[Any]":
    """SELECT the fields of `cls` from `table`, as `alias_field`; a column of `equal` that is None filters nothing."""
    query = sa.select(*(table.c[name].label(f"{alias}_{name}") for name in cls.__dataclass_fields__))  # type: ignore[attr-defined]
    return query.where(*(table.c[name] == value for name, value in equal.items() if value is not None))


def page_of(rows: list[Any], limit: int, key: Any) -> Page:
    """The first `limit` rows; one row more means that there is a next page, whose cursor is the last row's `key`."""
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, base64.urlsafe_b64encode(json.dumps(key(rows[-1])).encode()).decode() if more else None)


def decode_cursor(cursor: str, parse: Any) -> Any:
    """What `parse` makes of the cursor's values. Raises BadCursor."""
    try:
        return parse(*json.loads(base64.urlsafe_b64decode(cursor)))
    except (binascii.Error, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise BadCursor("this cursor was not issued by this listing; start again without `cursor`") from error
