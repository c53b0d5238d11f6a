"""A kind is defined once: what it checks, what it hides, and who else may know its name."""

import ast
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from outbox import kinds
from outbox.errors import BadRequest
from outbox.kinds import Field, Kind, text, whole_number

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "outbox/kinds").glob("*.py") if path.stem not in ("__init__", "fields"))


@pytest.fixture(params=SHIPPED)
def kind(request: pytest.FixtureRequest) -> Kind:
    found = kinds.find(request.param)
    assert found is not None, "it has an entry point; `make install` registers it"
    return found


def test_a_kind_s_example_is_a_manifest_of_it(kind: Kind) -> None:
    checked = kinds.check(kind.name, kind.example)
    assert checked == dict.fromkeys(checked) | kind.example
    assert list(checked) == [field.name for field in kind.fields]
    assert checked["generation"] is None, "every kind's objects are of a generation"


def test_each_wrong_field_is_named(kind: Kind) -> None:
    required = {field.name for field in kind.fields if field.required}
    with pytest.raises(BadRequest) as wrong:
        kinds.check(kind.name, {"generation": "g", "more": 1})
    named = {line.partition(":")[0] for line in str(wrong.value).split("; ")}
    assert named == {f"manifest.{name}" for name in required | {"generation", "more"}}


@pytest.mark.parametrize("value", ["", "x\n", "x" * 201, 7, "\udcff", ["x"], True])
def test_a_text_that_cannot_be_kept_is_refused(kind: Kind, value: Any) -> None:
    name = next(iter(kind.example))
    with pytest.raises(BadRequest, match=rf"^manifest\.{name}: must"):
        kinds.check(kind.name, kind.example | {name: value})


@pytest.mark.parametrize("prefix", [":", "open", " "])
def test_a_prefix_that_would_match_neighbours_keys_is_refused(prefix: str) -> None:
    with pytest.raises(BadRequest, match=r"manifest\.prefix"):
        kinds.check("redis", {"user": "u", "prefix": prefix})


@pytest.mark.parametrize(
    ("value", "stored"), [(7, 7), ("7", 7), (7.0, 7), (0, None), (2**32, None), (True, None), ("x", None)]
)
def test_a_whole_number_may_come_as_digits(value: Any, stored: int | None) -> None:
    check = whole_number(1, 2**32 - 1)
    if stored is None:
        with pytest.raises(ValueError, match="whole number from 1 to"):
            check(value)
    else:
        assert check(value) == stored


def test_a_uuid_is_stored_in_its_usual_form() -> None:
    generation = uuid.uuid4()
    checked = kinds.check("postgres", {"database": "x", "generation": f"{{{generation.hex.upper()}}}"})
    assert checked["generation"] == str(generation)


def test_the_manifest_of_a_kind_that_is_not_installed_stays_as_it_is() -> None:
    assert kinds.check("mainframe", {"vtoc": [1]}) == {"vtoc": [1]}
    assert kinds.redacted("mainframe", {"vtoc": [1]}) == {"vtoc": [1]}


def test_what_is_secret_in_a_manifest_is_stored_and_not_shown() -> None:
    kind = Kind("hook", "a hook", (Field("url", text(), "where"), Field("key", text(), "k", secret=True)), {"url": "u"})
    manifest = {"url": "u", "key": "s3cret"}
    assert kind.check(manifest) == manifest
    assert kind.redacted(manifest) == {"url": "u", "key": "(secret)"}
    assert kind.redacted({"url": "u", "key": None}) == {"url": "u", "key": None}


def test_a_backend_cannot_build_a_manifest_that_its_kind_does_not_describe(kind: Kind) -> None:
    with pytest.raises(TypeError, match="has no field 'databse'"):
        kind.manifest(**kind.example, databse="x")
    with pytest.raises(TypeError, match="needs"):
        kind.manifest()


def test_a_backend_reads_only_fields_of_its_kind(kind: Kind) -> None:
    read = set()
    for path in (ROOT / "worker/backends" / kind.name).glob("*.py"):
        found = re.findall(r"\b(?:manifest|full)(?:\[|\.get\()[\"'](\w+)", path.read_text())
        read |= set(found)
    assert read == {field.name for field in kind.fields}


# Code that says a kind's name and means another thing: the broker may be Redis, the control database is PostgreSQL.
EXPLAINED = {
    r"redis://": "the broker's URL",
    r"\bon_redis\b": "whether the broker is one Redis",
    r"\b(outbox\.doorbell|kombu\.transport)\.redis\b": "what speaks to a broker that is Redis",
    r"'intervalstyle': 'postgres'": "a format of PostgreSQL",
    r"'kind': 'postgres', 'backend': 'pg-main'": "OpenAPI's example, which works where `up` runs",
    r"s3:(//)?": "a snapshot store's URL",
    r"'postgresql', 'postgres'": "two spellings of the control database's URL",
}
# `up` and `demo` run servers of some kinds; the doorbell is on a Redis of its own, a snapshot store may speak S3.
APART = ("deprovisioner/up/", "deprovisioner/demo/", "outbox/doorbell/redis.py", "worker/snapshots/")


def test_no_other_module_knows_a_kind_by_its_name() -> None:
    """So a new kind is its module in kinds/, its module in worker/backends/, two entry points, and its tests."""
    name_of_a_kind = re.compile(rf"(?i)(?<![a-z])({'|'.join(SHIPPED)})(?!ql)")
    explained, found = set(), []
    for path in (path for top in ("outbox", "api", "worker", "deprovisioner") for path in (ROOT / top).rglob("*.py")):
        place = str(path.relative_to(ROOT))
        own = any(place in (f"outbox/kinds/{k}.py", f"worker/backends/{k}.py") for k in SHIPPED)
        own = own or any(place.startswith(f"worker/backends/{k}/") for k in SHIPPED)
        for line in () if own or place.startswith(APART) else _code(path):
            rest = line
            for pattern in EXPLAINED:
                shorter = re.sub(pattern, "", rest)
                explained |= {pattern} if shorter != rest else set()
                rest = shorter
            if name_of_a_kind.search(rest):
                found.append(f"{place}: {line.strip()}")
    assert found == []
    assert explained == set(EXPLAINED), "each explains something"


def _code(path: Path) -> list[str]:
    """What a module says but for comments and docstrings, a statement's line each."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).splitlines()
