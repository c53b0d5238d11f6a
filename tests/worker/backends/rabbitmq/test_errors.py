"""What each failure of the management API means, and what is no word of RabbitMQ's."""

import datetime as dt
import ipaddress
import json
import socket
import uuid
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from outbox.errors import BackendError, OutOfService, Refused, SettingsError, Transient, Unavailable
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.worker.backends.rabbitmq.conftest import Answers
from worker.backends import Absent
from worker.backends.rabbitmq import Rabbitmq, session
from worker.backends.rabbitmq.session import DoubtError, Server

NOBODY = {"vhost": "orders", "user": "app", "generation": str(uuid.UUID(int=1)), "server": "s"}


@pytest.mark.parametrize(
    "dsn",
    [
        "amqp://u:a-secret@host:5672",
        "http://host:15672/a-secret",
        "http://u@host:15672/?a-secret",
        "http://u:a-secret@host:99999",
        "https://u:a-secret@:1",
    ],
)
def test_a_dsn_that_is_none_is_an_error_that_does_not_show_it(dsn: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Rabbitmq(dsn)
    assert "secret" not in str(wrong.value)


def test_an_unknown_word_in_the_dsn_is_an_error() -> None:
    with pytest.raises(SettingsError, match="verify"):
        Rabbitmq("https://u:p@host?verify=no")


@pytest.mark.parametrize(
    ("status", "body", "get", "delete"),
    [
        (301, "", Unavailable, Unavailable),
        (200, "<html>", Unavailable, Unavailable),
        (404, "<html>Not Found</html>", Unavailable, Unavailable),
        (404, '{"error": "no such page"}', Unavailable, Unavailable),
        (401, '{"error": "not_authorized", "reason": "Login failed"}', Unavailable, Unavailable),
        (401, '{"error": "not_authorised", "reason": "Not administrator user"}', Refused, Refused),
        (401, '{"error": "not_authorised", "reason": "Not management user"}', Refused, Refused),
        (400, '{"error": "bad_request", "reason": "not_json"}', Refused, Refused),
        (400, '{"error": "bad_request", "reason": "vhost_or_user_not_found"}', Transient, Transient),
        (429, "", OutOfService, OutOfService),
        (503, "", OutOfService, OutOfService),
        (500, '{"error": "Internal Server Error"}', Transient, DoubtError),
        (502, "<html>", Unavailable, DoubtError),
        (504, "<html>", Unavailable, DoubtError),
    ],
)
def test_each_answer_means_one_thing_and_no_other(
    answers: Answers, status: int, body: str, get: type[BackendError], delete: type[BackendError]
) -> None:
    with Server(answers(status, body, Location="/elsewhere"), frozenset()).connect() as asked:
        for call, means in ((asked.get, get), (asked.delete, delete)):
            with pytest.raises(means) as failed:
                call("vhosts", "orders")
            assert type(failed.value) is means
            assert str(status) in str(failed.value)
            assert "a-secret" not in str(failed.value)


def test_a_missing_right_is_named(server: RabbitmqServer) -> None:
    for tags in ("", "management", "monitoring,policymaker"):
        weak = Rabbitmq(server.account(f"weak_{uuid.uuid4().hex}", tags))
        with pytest.raises(Refused, match="lacks the tag `administrator`"):
            weak.plan(uuid.uuid4(), uuid.uuid4())
        (finding,) = weak.check()
        assert (finding.code, "set_user_tags weak_" in finding.mend) == ("rights_too_few", True)


def test_an_answer_without_end_is_cut_off(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LONGEST", 1000)
    with Server(answers(200, f'["{"x" * 2000}"]'), frozenset()).connect() as asked:
        with pytest.raises(Transient, match="longer than 1000"):
            asked.get("vhosts")
        with pytest.raises(Transient, match="longer than 1000"):
            list(asked.each("vhosts", columns="name"))


@pytest.mark.parametrize("body", ["", "{}", '[{"name": "a"}', '[{"name": "a"},', '[{"name": "a"}, 1]', '[{"na'])
def test_a_list_that_is_none_or_ends_early_is_no_list(answers: Answers, body: str) -> None:
    with (
        Server(answers(200, body), frozenset()).connect() as asked,
        pytest.raises(Transient, match="no JSON list"),
    ):
        list(asked.each("vhosts", columns="name"))


def test_a_list_comes_item_by_item_whatever_pieces_it_comes_in(answers: Answers) -> None:
    items = [{"name": f"ö,{{[{n}", "tags": ["x", {"a": "]"}]} for n in range(3000)]
    for found in (items, []):
        body = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        with Server(answers(200, body), frozenset()).connect() as asked:
            assert list(asked.each("vhosts", columns="name")) == found


def test_a_server_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://u:a-secret@127.0.0.1:{silent.getsockname()[1]}"
        with Server(address, frozenset()).connect() as asked:
            with pytest.raises(DoubtError) as failed:
                asked.delete("vhosts", "orders", seconds=0.2)
            assert "a-secret" not in str(failed.value)
        with pytest.raises(Unavailable, match="ReadTimeout"):
            Rabbitmq(address).inspect(NOBODY)


def test_a_proxy_s_404_is_no_absence(answers: Answers) -> None:
    for body, kind in (("<html>Not Found</html>", "text/html"), ('{"detail": "Not Found"}', "application/json")):
        backend = Rabbitmq(answers(404, body, kind))
        with pytest.raises(Unavailable, match="is this the management API"):
            assert not isinstance(backend.inspect(NOBODY), Absent)


def test_even_rabbitmq_s_404_is_no_absence_without_its_cluster(answers: Answers) -> None:
    backend = Rabbitmq(answers(404, '{"error": "Object Not Found", "reason": "Not Found"}'))
    with pytest.raises(Unavailable):
        assert not isinstance(backend.inspect(NOBODY), Absent)


def test_a_server_that_is_no_server_with_tls_is_unavailable(server: RabbitmqServer) -> None:
    backend = Rabbitmq(server.service_dsn.replace("http://", "https://"))
    with pytest.raises(Unavailable, match="no connection"):
        backend.inspect(NOBODY)


def test_a_certificate_is_verified_by_the_cafile_and_its_name_by_the_host(answers: Answers, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "127.0.0.1")
    address = answers(200, "[]", tls=certificate).replace("http://", "https://")
    for other in (address, f"{address}?cafile={self_signed(tmp_path, '127.0.0.2')}", f"{address}?cafile=/nowhere"):
        with (
            pytest.raises(Unavailable, match=r"certificate|cafile") as failed,
            Server(other, frozenset()).connect() as asked,
        ):
            asked.get("vhosts")
        assert "a-secret" not in str(failed.value)
    with Server(f"{address}?cafile={certificate}", frozenset()).connect() as asked:
        assert asked.get("vhosts") == []


def self_signed(folder: Path, address: str) -> Path:
    """A file with a certificate for this address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = folder / f"{address}.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    made.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return made


def test_the_environment_s_proxies_are_not_asked(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, answers(200, '["a proxy"]').replace("someone:a-secret@", ""))
    with Server(answers(200, '["the server"]'), frozenset()).connect() as asked:
        assert asked.get("vhosts") == ["the server"]
