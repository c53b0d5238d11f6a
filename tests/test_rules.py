"""Rules of the house that a reader would otherwise have to believe."""

import ast
import re
import tomllib
from pathlib import Path

from api import problems
from outbox.events import Event
from outbox.settings import PREFIX, Settings
from outbox.states import TRANSITIONS
from tests.mutations import EQUIVALENT, MUTANTS

ROOT = Path(__file__).parent.parent
PRODUCT = [
    *ROOT.glob("deprovisioner/**/*.py"),
    *ROOT.glob("outbox/**/*.py"),
    *ROOT.glob("api/**/*.py"),
    *ROOT.glob("worker/**/*.py"),
]
# A write of a state or status, in SQL; and statements that destroy a customer's thing.
WRITES_STATE = re.compile(
    r"SET\s+(\w+\s*=\s*[^;]*?,\s*)?(state|status)\s*=|\((\w+, )*(state|status)(, \w+)*\)\s*(VALUES|SELECT)"
)
DESTROYS = re.compile(r"\bDROP (DATABASE|ROLE|USER|SCHEMA|OWNED)\b|\bDELUSER\b|\bUNLINK\b|\bFLUSH(ALL|DB)\b")


def _files(pattern: re.Pattern[str]) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in PRODUCT if any(pattern.search(text) for text in _strings(path))}


def _strings(path: Path) -> list[str]:
    """Every string of a file that is no docstring; an f-string's pieces joined."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    joined = [
        "X".join(ast.unparse(v) for v in node.values) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    ]
    plain = [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
    ]
    return joined + plain


def test_states_are_written_in_one_place() -> None:
    assert _files(WRITES_STATE) == {
        "outbox/jobs/abandon.py",
        "outbox/jobs/enqueue.py",
        "outbox/jobs/claim.py",
        "outbox/jobs/finish.py",
        "outbox/jobs/operators.py",
        "outbox/jobs/recovery.py",
        "outbox/jobs/release.py",
        "outbox/jobs/restore.py",
    }


def test_destructive_statements_stand_only_in_backends() -> None:
    found = _files(DESTROYS)
    assert found, "a pattern that finds nothing proves nothing"
    assert all(name.startswith("worker/backends/") for name in found), found


def test_every_setting_stands_in_the_configuration_page() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    missing = [name for name in Settings.__struct_fields__ if f"`{PREFIX}{name.upper()}`" not in page]
    assert missing == []


def test_every_problem_code_stands_in_the_api_page_with_its_status() -> None:
    page = (ROOT / "docs/api.md").read_text()
    missing = [code for _, status, code in problems.TABLE if f"| {status} | `{code}` |" not in page]
    assert missing == []


def test_the_readme_fits_the_first_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_link_between_the_documents_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]
    broken = [
        (page.name, link)
        for page in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if "://" not in link and not _leads_somewhere(page, link)
    ]
    assert broken == []


def test_every_path_that_a_document_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]
    tops = "deprovisioner|outbox|api|worker|migrations|tests|bench|docs|docker"
    missing = [
        (page.name, path)
        for page in pages
        for path in re.findall(rf"`((?:{tops})/[\w/.\-]+)`", page.read_text())
        if not (ROOT / path).exists()
    ]
    assert missing == []


def _leads_somewhere(page: Path, link: str) -> bool:
    """Whether the file is there, and has a heading for the part behind `#` (as GitHub makes its anchors)."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists() or not anchor:
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
    return anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_design_draws_every_arrow_and_no_other() -> None:
    drawn = re.search(
        r"<!-- transitions -->\n(.*?)<!-- /transitions -->", (ROOT / "docs/design.md").read_text(), re.DOTALL
    )
    assert drawn
    rows = {tuple(cell.strip() for cell in line.strip("| \n").split("|")) for line in drawn[1].splitlines()[2:]}
    assert rows == {(t.name, t.source or "", t.target, t.guard, t.by) for t in TRANSITIONS}


def test_every_guard_that_the_mutants_take_out_still_stands() -> None:
    texts = {name: (ROOT / name).read_text() for name in {m.file for m in (*MUTANTS, *EQUIVALENT)}}
    for mutant in (*MUTANTS, *EQUIVALENT):
        mutated = mutant.applied(texts[mutant.file])  # raises Stale
        compile(mutated, mutant.file, "exec")
    names = [mutant.name for mutant in (*MUTANTS, *EQUIVALENT)]
    assert len(set(names)) == len(names)
    assert {t.name for t in TRANSITIONS} <= {name.partition(":")[0] for name in names}, "a transition without a mutant"


def test_every_test_that_a_mutant_names_exists() -> None:
    named = {test.partition("[")[0] for mutant in (*MUTANTS, *EQUIVALENT) for test in mutant.tests}
    texts = {path: (ROOT / path).read_text() for path in {test.partition("::")[0] for test in named}}
    suite = "".join(path.read_text() for path in ROOT.glob("deprovisioner/conformance/test_*.py"))
    texts |= {path: suite for path in texts if path.startswith("tests/worker/backends/conformance/")}
    missing = [
        test for test in named if "::" in test and f"def {test.split('::')[-1]}(" not in texts[test.split("::")[0]]
    ]
    assert missing == []


def test_every_test_that_the_security_page_names_exists() -> None:
    named = re.findall(r"`(?:(tests/[\w/]+\.py))?::(test_\w+)`", (ROOT / "docs/security.md").read_text())
    file, missing = "", []
    for path, test in named:  # a name without a file is in the file before it
        file = path or file
        if f"def {test}(" not in (ROOT / file).read_text():
            missing.append(f"{file}::{test}")
    assert named
    assert missing == []


def test_every_package_of_the_product_is_installed() -> None:
    """An editable install finds them all; a wheel, and so the image, has only what is listed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tops = ("deprovisioner", "outbox", "api", "worker", "migrations")
    found = [path.parent.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("__init__.py")]
    assert sorted(listed) == sorted(str(path).replace("/", ".") for path in found)


def test_an_event_s_log_line_is_written_by_the_emitter_alone() -> None:
    words = "|".join(Event)
    other = re.compile(rf'\blog\.\w+\(\s*"({words})"')
    assert [str(path.relative_to(ROOT)) for path in PRODUCT if other.search(path.read_text())] == []
