"""What a caller says of a resource: labels and an external id; checked once, for API, command and bulk adoption."""

from typing import Any

from outbox.errors import BadRequest
from outbox.rows import storable

MOST, LONGEST_KEY, LONGEST_VALUE = 20, 63, 200


def check(labels: Any) -> dict[str, str]:
    """The labels as they are stored. Raises BadRequest, which names what is wrong."""
    if not isinstance(labels, dict):
        raise BadRequest("labels: must be an object of texts")
    if len(labels) > MOST:
        raise BadRequest(f"labels: at most {MOST}, not {len(labels)}")
    for key, value in labels.items():
        if not isinstance(key, str) or not 1 <= len(key) <= LONGEST_KEY or ":" in key or not _plain(key):
            raise BadRequest(f"labels: {str(key)[:LONGEST_KEY]!r} is no key: 1 to {LONGEST_KEY} characters, none ':'")
        if not isinstance(value, str) or len(value) > LONGEST_VALUE or not storable(value):
            raise BadRequest(f"labels: {key} must be a text of at most {LONGEST_VALUE} characters, none a control one")
    return dict(labels)


def check_external_id(value: Any) -> str | None:
    """The external id as it is stored, None where there is none. Raises BadRequest."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_VALUE or not _plain(value):
        raise BadRequest(f"external_id: must be a text of 1 to {LONGEST_VALUE} characters, none a control character")
    return value


def pair(written: str) -> tuple[str, str]:
    """`key:value`, as filters write a label. Raises BadRequest."""
    key, colon, value = written.partition(":")
    if not colon:
        raise BadRequest(f"label: {written[:LONGEST_VALUE]!r} must be written key:value")
    check({key: value})
    return key, value


def _plain(words: str) -> bool:
    return bool(words.strip()) and storable(words)
