"""docker-compose.yml, where there is a client to read it. No engine is needed."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECRETS = ("POSTGRES_PASSWORD", "SERVICE_PASSWORD", "BACKENDS_PASSWORD", "DEPROVISIONER_CREDENTIALS_KEY")


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
