"""A server's port that is taken: `up` waits for it, then refuses, and never chooses another."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deprovisioner.up import ports, servers
from deprovisioner.up.home import State
from outbox.errors import DeprovisionerError


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", servers.free_port()))
        held.listen()
        yield held


def _wait(port: int, timeout: float) -> None:
    ports.wait_until_free("pg-main", port, stop=lambda: None, timeout=timeout)


def test_a_port_that_another_program_keeps_is_refused_with_its_name_and_pid(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with pytest.raises(DeprovisionerError) as error:
        _wait(port, 0.1)
    assert f"port {port} of pg-main on 127.0.0.1 is taken by" in str(error.value)
    assert f"(pid {os.getpid()})" in str(error.value)
    assert "end that program, then start `up` again" in str(error.value)


def test_a_port_that_is_given_up_meanwhile_is_waited_for(taken: socket.socket) -> None:
    port, waited = taken.getsockname()[1], threading.Event()
    thread = threading.Thread(target=lambda: waited.wait() and taken.close())
    thread.start()
    ports.wait_until_free("pg-main", port, stop=waited.set, timeout=30)
    thread.join()
    assert waited.is_set()


def test_a_signal_ends_the_wait_for_a_port(taken: socket.socket) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ports.wait_until_free("pg-main", taken.getsockname()[1], stop=stop, timeout=5)


def test_a_taken_port_stays_the_servers(tmp_path: Path, taken: socket.socket) -> None:
    state = State(tmp_path)
    for server in ("control", "broker", "pg-main", "redis-main"):
        state.set(f"{server}.port", taken.getsockname()[1])
        assert State(tmp_path).port(server) == taken.getsockname()[1]


def test_a_server_s_port_is_outside_the_range_of_outgoing_connections() -> None:
    """The system's own range; an outgoing connection of any program may have one of its ports while ours is down."""
    range_of_system = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not range_of_system.exists():
        pytest.skip("this system does not say which ports it gives to outgoing connections")
    low, high = map(int, range_of_system.read_text().split())
    assert not [port for port in (servers.free_port() for _ in range(50)) if low <= port <= high]


def test_no_two_processes_choose_one_port() -> None:
    def another_process_may_choose(port: int) -> bool:
        asked = f"from deprovisioner.up import servers; print(servers._reserve({port}))"
        said = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout
        return said.strip() == "True"

    port = servers.free_port()
    assert servers.port_is_free("127.0.0.1", port), "no server listens there yet"
    assert not another_process_may_choose(port)
    with socket.socket() as unchosen:
        unchosen.bind(("127.0.0.1", 0))
        assert another_process_may_choose(unchosen.getsockname()[1])
