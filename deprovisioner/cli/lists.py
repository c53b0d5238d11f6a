"""Lists of objects in a file, CSV or JSON lines, as `adopt` takes them: each object with its line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outbox import kinds
from outbox.adoptions import FIELDS
from outbox.errors import BadRequest
from outbox.kinds import Kind
from outbox.rows import Json

# 50,000 objects with all that they may have.
MOST_BYTES = 64 * 1024 * 1024
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read(path: Path, kind: str, *, tenant: str | None = None) -> Iterator[tuple[int, Json]]:
    """The objects of the file, each of this kind of backend, `tenant` for those that name none.

    Raises BadRequest that says which line is wrong; for a column of a CSV it is line 1.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise BadRequest(f"{path.name}: the name must end with .csv or .jsonl, by which the format is known")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise BadRequest(f"{path.name} has {size} bytes, and at most {MOST_BYTES} are read: split the list")
    with path.open("rb") as file:
        if (name := _BOMS.get(file.read(2))) is not None:
            raise BadRequest(f"{path.name} is {name}: save it as UTF-8 (in Excel: CSV UTF-8)")
    rows = _of_csv(path, kinds.find(kind), tenant) if path.suffix == ".csv" else _of_jsonl(path)
    for line, fields in rows:
        found = _object(fields)
        yield line, found if found.get("tenant") or tenant is None else found | {"tenant": tenant}


def _lines(path: Path) -> Iterator[str]:
    """The file's lines. utf-8-sig takes the mark off that Excel writes at the beginning."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise BadRequest(f"line {number}: has a NUL byte: this is no text")
                yield line
    except UnicodeDecodeError as error:
        raise BadRequest(f"line {_undecodable(path)}: is not UTF-8: save the list as UTF-8") from error


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8; the error itself only knows its place in a block of the file."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    raise AssertionError(path)  # the caller could not decode it


def _of_csv(path: Path, kind: Kind | None, tenant: str | None) -> Iterator[tuple[int, Json]]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        if len(header) == 1 and ";" in header[0]:
            raise BadRequest("line 1: the columns must be separated by commas, not by semicolons")
        if not any(header):
            raise BadRequest(f"{path.name} has no header: the first line must name the columns")
        if twice := next((column for column in header if header.count(column) > 1), None):
            raise BadRequest(f"line 1: column {twice[:60]!r} is there twice")
        if kind is not None and (wrong := _wrong_columns(header, kind, tenant)):
            raise BadRequest(f"line 1: {'; '.join(wrong)}")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise BadRequest(f"line {reader.line_num}: has {len(row)} cells, and the header has {len(header)}")
            yield reader.line_num, {column: cell for column, cell in zip(header, row, strict=True) if cell != ""}
    except csv.Error as error:
        raise BadRequest(f"line {reader.line_num}: is not CSV: {error}") from error


def _wrong_columns(header: list[str], kind: Kind, tenant: str | None) -> list[str]:
    known = [*FIELDS, *(field.name for field in kind.fields)]
    unknown = [column for column in header if column not in known][:20]
    needed = [] if "manifest" in header else [field.name for field in kind.fields if field.required]
    missing = [column for column in needed if column not in header]
    wrong = [f"column {column[:60]!r} is none of {', '.join(known)}" for column in unknown]
    wrong += [f"column {column!r} is missing" for column in missing]
    if tenant is None and "tenant" not in header:
        wrong.append("column 'tenant' is missing: add it, or say whose all are with `--tenant`")
    return wrong


def _of_jsonl(path: Path) -> Iterator[tuple[int, Json]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"line {number}: is not JSON: {str(error)[:200]}") from error
        if not isinstance(found, dict):
            raise BadRequest(f"line {number}: must be an object of JSON")
        yield number, found


def _object(fields: Json) -> Json:
    """The fields of an object; what is none of them is of its manifest."""
    found = {name: value for name, value in fields.items() if name in FIELDS}
    manifest = {name: value for name, value in fields.items() if name not in FIELDS}
    if manifest and isinstance(found.get("manifest", {}), dict):
        found["manifest"] = manifest | found.get("manifest", {})
    for name in ("labels", "protected", "manifest"):
        if isinstance(found.get(name), str):  # as a cell has it
            found[name] = _cell(found[name])
    return found


def _cell(written: str) -> Any:
    try:
        return json.loads(written.lower() if written.lower() in ("true", "false") else written)
    except (ValueError, RecursionError):
        return written
