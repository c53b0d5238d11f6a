"""A third party's kind needs `deprovisioner.sdk` and nothing else of ours."""

import ast
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from deprovisioner import sdk
from outbox import jobs, kinds, queries, resources, settings
from outbox.errors import BadRequest, Refused, SettingsError
from outbox.resources import NewResource
from tests.support.servers import use_environment
from worker import backends
from worker.backends import Absent, Same

ROOT = Path(__file__).parents[2]
OURS = ("api", "deprovisioner", "migrations", "outbox", "worker")


EXAMPLE = ROOT / "examples/deprovisioner-directory/src/deprovisioner_directory"
# A second package: a kind whose manifests have a secret.
VAULT = """
from deprovisioner.sdk import Field, Kind, text

KIND = Kind(
    name="vault",
    about="a vault",
    fields=(Field("vault", text(), "its name", required=True), Field("token", text(), "shown to nobody", secret=True)),
    example={"vault": "orders"},
)
"""


@pytest.fixture
def files(settled: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both packages are installed, by their metadata on `sys.path`, and a backend of the example is configured."""
    (info := tmp_path / "site" / "acme-1.0.dist-info").mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{backends.ENTRY_POINTS}]\ndirectory = deprovisioner_directory.backend:Directory\n"
        f"[{kinds.ENTRY_POINTS}]\ndirectory = deprovisioner_directory.kind:KIND\nvault = acme_vault:KIND\n"
    )
    (tmp_path / "site" / "acme_vault.py").write_text(VAULT)
    (root := tmp_path / "root").mkdir()
    path = tmp_path / "files.toml"
    path.write_text(f'[backends.files]\nkind = "directory"\ndsn = "directory:{root}"\n')
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BACKENDS": str(path)})
    _forget_kinds()
    yield root
    for name in [name for name in sys.modules if name.startswith(("acme_vault", "deprovisioner_directory"))]:
        del sys.modules[name]
    _forget_kinds()


def _forget_kinds() -> None:
    kinds.find.cache_clear()
    kinds._installed.cache_clear()


def test_a_third_party_s_backend_is_built_by_its_entry_point_and_lives_a_life(files: Path) -> None:
    backend = backends.build(settings.backends()["files"], protected=frozenset({"control_db"}))
    assert type(backend).__module__ == "deprovisioner_directory.backend"
    assert [one.code for one in backends.check(backend)] == ["no_memory"], "it has no method `check`"
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    assert isinstance(backend.inspect(plan.manifest), Absent)
    manifest = backend.provision(plan.manifest, plan.credentials)
    assert isinstance(backend.inspect(manifest), Same)
    with pytest.raises(Refused, match="not the one of this resource"):
        backend.teardown(manifest | {"generation": str(uuid.uuid4())}, 1)
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert [path.name for path in files.iterdir()] == [".deprovisioner"]


def test_a_third_party_s_manifest_is_checked_and_its_secret_is_not_shown(files: Path) -> None:
    assert kinds.check("vault", {"vault": "a"}) == {"vault": "a", "token": None}
    with pytest.raises(BadRequest, match=r"manifest\.vault: is required"):
        kinds.check("vault", {})
    assert kinds.redacted("vault", {"vault": "a", "token": "s3cret"}) == {"vault": "a", "token": "(secret)"}
    with pytest.raises(BadRequest, match=r"manifest\.name: must be the name of one folder"):
        kinds.check("directory", {"name": "../etc"})


def test_no_event_that_is_shown_has_a_manifest_s_secret(files: Path, db: Connection) -> None:
    path = files.parent / "files.toml"
    path.write_text(path.read_text() + '[backends.vaults]\nkind = "vault"\ndsn = "x"\n')
    settings.backends.cache_clear()
    given = {"vault": "a", "token": "s3cret"}
    _, job = resources.register(db, NewResource("acme", "vault", "vaults", "orders", manifest=given), actor="me")
    (claim,) = jobs.claim(db, {"vaults": 1}, slots=1, worker="w")
    jobs.start_provision(db, claim, worker="w", manifest=claim.manifest or {}, credentials=None)
    jobs.activate(db, claim, worker="w", manifest=claim.manifest or {})
    jobs.note_late(db, claim, worker="w", news={"undone": claim.manifest, "seen": {"completes": given}})
    for tenant in (None, "acme"):
        events = queries.job_story(db, job.id, tenant=tenant).events
        assert [event.event for event in events] == ["enqueued", "claimed", "started", "activated", "late"]
        shown = json.dumps([event.detail for event in events])
        assert (shown.count("(secret)"), "s3cret" in shown) == (5, False)


def test_an_entry_point_that_is_not_a_kind_is_an_error_that_names_it(files: Path) -> None:
    names = files.parent / "site" / "acme-1.0.dist-info" / "entry_points.txt"
    names.write_text(f"[{kinds.ENTRY_POINTS}]\nvault = acme_vault:text\nother = acme_vault:KIND\n")
    _forget_kinds()
    for name, wrong in (("vault", "acme_vault:text"), ("other", "acme_vault:KIND")):
        with pytest.raises(
            SettingsError, match=f"entry point '{name}' in deprovisioner.kinds: {wrong} is not the Kind"
        ):
            kinds.check(name, {})


def test_a_kind_that_is_not_installed_is_an_error_that_lists_those_that_are(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.BackendConfig("x", "mainframe", 1)
    with pytest.raises(
        SettingsError,
        match="kind 'mainframe' is not installed; known: directory, mysql, postgres, rabbitmq, redis, s3, webhook",
    ):
        backends.build(config, protected=frozenset())


def test_an_option_that_a_kind_does_not_name_is_refused_with_its_key(files: Path) -> None:
    config = settings.BackendConfig("x", "directory", 1, options={"public_host": "h"})
    with pytest.raises(
        SettingsError, match=r"kind 'directory' has no option 'public_host'; remove it from \[backends.x\]"
    ):
        backends.build(config, protected=frozenset())


def test_the_third_party_imports_nothing_of_ours_but_the_sdk() -> None:
    for path in EXAMPLE.glob("*.py"):
        assert _imported(path) <= {f"deprovisioner.sdk.{name}" for name in sdk.__all__}


def test_the_sdk_has_all_that_backends_use() -> None:
    """What a shipped backend imports, a third party needs too."""
    files = [path for path in (ROOT / "worker/backends").rglob("*.py") if path.parent.name != "backends"]
    files += [*(ROOT / "outbox/kinds").glob("[!_f]*.py")]
    used = {name for path in files for name in _imported(path)}
    shipped = [path.parent.name for path in (ROOT / "worker/backends").glob("*/__init__.py")]
    own = tuple(f"{place}.{kind}" for kind in shipped for place in ("worker.backends", "outbox.kinds"))
    own += ("outbox.opening.",)  # psycopg2's connections to our own PostgreSQL
    own += ("outbox.foreign",)  # the worker's door bounds what a third party returns
    needed = {name.rpartition(".")[2] for name in used if not name.startswith(own)}
    assert needed
    assert needed <= set(sdk.__all__)


def test_each_name_of_the_sdk_is_there_and_explained() -> None:
    names: dict[str, object] = {}
    exec("from deprovisioner.sdk import *", names)
    assert set(names) - {"__builtins__"} == set(sdk.__all__)
    aliases = {"Json", "Check", "Observation", "Read", "Still", "Write"}
    assert [name for name in sdk.__all__ if name not in aliases and not getattr(sdk, name).__doc__] == []


def _imported(path: Path) -> set[str]:
    """The names that a module imports from the product, with their modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in OURS}
    return found
