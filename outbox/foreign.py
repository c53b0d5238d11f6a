"""What others wrote (servers, customers, third parties' backends), made short, printable and storable.

A customer chooses names, comments, keys and thereby the text of errors. PostgreSQL stores neither NUL nor lone
surrogates, a terminal obeys control characters, and append-only evidence keeps whatever it is given.
"""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

LINE = 1_000  # characters of a text, such as an error; the longest of ours, with a statement that mends it, has 800
EVIDENCE = 4_000  # characters of an observation as JSON: ten of them, for a job's ten attempts, stay below 64 KB
_PARTS = 200  # values of one observation
_SHORTER = (500, 100, 20)  # the lengths of its texts that are tried in turn


def line(text: str, limit: int = LINE) -> str:
    """One line of printable characters, at most `limit` and a note of how many there were."""
    return _cut(text, limit, "".join(" " if c.isspace() else _shown(c) for c in text[: 2 * limit]))


def block(text: str, limit: int) -> str:
    """The same with its lines, and the end as well as the beginning: the last line of a traceback says most."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… ({len(text)} characters)\n{text[-limit // 2 :]}"
    return "".join(c if c in "\n\t" else _shown(c) for c in text)


def evidence(value: Any) -> Any:
    """A value as JSON can store it, at most EVIDENCE characters of it; what is not JSON's is shown as text."""
    for limit in _SHORTER:
        made = _bounded(value, limit, iter(range(_PARTS)))
        if len(written := json.dumps(made)) <= EVIDENCE:
            return made
    return {"cut": line(written, EVIDENCE // 2)}


def _bounded(value: Any, limit: int, parts: Iterator[int]) -> Any:
    if next(parts, None) is None:
        return "…"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else f"(a number of {value.bit_length()} bits)"
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        return line(value, limit)
    if isinstance(value, Mapping):
        some = islice(value.items(), _PARTS)
        return {line(str(name), limit): _bounded(one, limit, parts) for name, one in some}
    if isinstance(value, list | tuple | set | frozenset):
        return [_bounded(one, limit, parts) for one in islice(value, _PARTS)]
    return line(repr(value), limit)


def _cut(text: str, limit: int, shown: str) -> str:
    if len(shown) <= limit and len(text) <= 2 * limit:
        return shown
    return f"{shown[:limit]}… ({len(text)} characters)"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
