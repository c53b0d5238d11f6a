"""Every SQL statement of the product, as its server gets it: `python -m tests.support.statements` (`make sql`).

Each is printed with its parameters numbered, so that it can be pasted behind `PREPARE name AS` in psql. `--hashes`
prints one hash a statement instead: two checkouts with the same list send the same statements.
"""

import argparse
import ast
import hashlib
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import TextClause
from sqlalchemy.dialects import postgresql

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("outbox", "api", "worker", "deprovisioner")
# The functions that send the text they are given first; of a backend, the text is sent after its names are quoted.
_SENDS = {"text", "prepared", "execute", "_execute", "exec_driver_sql", "scalar"}
_BEGINS = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|SET|BEGIN|COMMIT|ROLLBACK|CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT|REASSIGN)\b"
)
_PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True)
class Statement:
    """`where` is its module and its name there, or its line."""

    where: str
    sql: str

    @property
    def parameters(self) -> list[str]:
        """Their names, in the order of the numbers."""
        return list(dict.fromkeys(_PARAMETER.findall(self.sql)))

    @property
    def numbered(self) -> str:
        """The text with `$1` for its first parameter."""
        names = self.parameters
        return _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", self.sql).replace("%%", "%")

    @property
    def hash(self) -> str:
        """Of the text alone: a statement may move to another module."""
        return hashlib.sha256(self.sql.encode()).hexdigest()[:16]


def statements() -> list[Statement]:
    """All of them, in the order of modules and of lines."""
    found = [statement for module in _modules() for statement in _of(module)]
    return list({statement.sql: statement for statement in reversed(found)}.values())[::-1]


def _modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        if not (ROOT / package).is_dir():
            continue
        top = importlib.import_module(package)
        yield top
        for info in pkgutil.walk_packages(top.__path__, f"{package}."):
            if not info.name.endswith("__main__") and info.name not in ("worker.app", "worker.messages"):
                yield importlib.import_module(info.name)


def _of(module: ModuleType) -> Iterator[Statement]:
    for name, value in vars(module).items():
        if isinstance(value, TextClause):
            yield Statement(f"{module.__name__}.{name}", _compiled(value))
        elif isinstance(value, tuple | list):  # the doctor's checks
            for item in value:
                if isinstance(sql := getattr(item, "sql", None), str):
                    yield Statement(f"{module.__name__}.{item.code}", sql)
    assert module.__file__
    source = Path(module.__file__)
    functions = [n for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.FunctionDef)]
    for node in (node for function in functions for node in ast.walk(function)):
        if isinstance(node, ast.Call) and _name(node.func) in _SENDS:
            for argument in node.args[:2]:
                if (sql := _said(argument, module)) is not None and _BEGINS.match(sql):
                    bound = re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", sql) if _name(node.func) == "text" else sql
                    yield Statement(f"{module.__name__}:{node.lineno}", bound)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _said(argument: ast.expr, module: ModuleType) -> str | None:
    """The text of a literal, with what the module's own constants put into it."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    if isinstance(argument, ast.JoinedStr):
        try:
            said: Any = eval(compile(ast.Expression(argument), "<text>", "eval"), dict(vars(module)))
        except NameError:  # it takes a value of its function
            return ast.unparse(argument)[2:-1]
        return str(said)
    return None


def _compiled(statement: TextClause) -> str:
    return str(statement.compile(dialect=postgresql.psycopg2.dialect()))  # type: ignore[no-untyped-call]


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.statements", description=__doc__)
    parser.add_argument("--hashes", action="store_true", help="one hash and place a line, instead of the texts")
    asked = parser.parse_args()
    for statement in statements():
        if asked.hashes:
            sys.stdout.write(f"{statement.hash}  {statement.where}\n")
            continue
        bound = "".join(f"-- ${n} {name}\n" for n, name in enumerate(statement.parameters, 1))
        sys.stdout.write(f"-- {statement.where}\n{bound}{statement.numbered.strip()};\n\n")


if __name__ == "__main__":
    main()
