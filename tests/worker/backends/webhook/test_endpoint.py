"""The dsn: what it says, and what is wrong with one, without showing its secret."""

import base64
import re
from pathlib import Path

import pytest

from outbox.errors import SettingsError
from tests.support.provisioners import SECRET
from worker.backends.webhook import Webhook, endpoint

PLUS = "whsec_" + base64.b64encode(b"\xfb\xef\xbe" * 10).decode()


def test_a_dsn_is_an_address_and_words_about_it() -> None:
    found = endpoint.parse(f"https://hooks.example.com/v1?secret={SECRET}&timeout=5&wait=60&server=books")
    assert (str(found.url), found.timeout, found.wait, found.server) == (
        "https://hooks.example.com/v1/",
        5,
        60,
        "books",
    )
    assert found.encrypted


def test_a_secret_with_a_plus_is_taken_as_it_is() -> None:
    assert "+" in PLUS
    (signer,) = endpoint.parse(f"https://x/?secret={PLUS}").signers
    assert signer._whsecret == b"\xfb\xef\xbe" * 10


@pytest.mark.parametrize(
    ("dsn", "why"),
    [
        ("https://x/", "has no `secret`"),
        ("https://x/?secret=", "base64 of 24 to 64 bytes"),
        (f"https://x/?secret={SECRET[:20]}", "base64 of 24 to 64 bytes"),
        ("https://x/?secret=whsec_not-base64-at-all!!!!!!!!!!!!!!!", "openssl rand"),
        (f"https://x/?secrte={SECRET}", "unknown; known: ca, insecure, secret"),
        (f"https://me:pw@x/?secret={SECRET}", "no user and password"),
        (f"ftp://x/?secret={SECRET}", "no http:// or https:// address"),
        (f"https://?secret={SECRET}", "no http:// or https:// address"),
        (f"https://x:port/?secret={SECRET}", "no http:// or https:// address"),
        (f"http://x/?secret={SECRET}", "insecure=true"),
        (f"https://x/?secret={SECRET}&timeout=0", "`timeout` of the dsn must be seconds, a whole number from 1 to 600"),
        (f"https://x/?secret={SECRET}&timeout=1e9", "from 1 to 600"),
        (f"https://x/?secret={SECRET}&wait={10**30}", "from 1 to 86400"),
        (f"https://x/?secret={SECRET}&server=a&server=b", "`server` twice"),
        (f"https://x/?secret={SECRET}&ca=/nowhere", "`ca` of the dsn is no file of certificates"),
    ],
)
def test_a_wrong_dsn_is_told_with_what_to_do_and_without_its_secret(dsn: str, why: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Webhook(dsn)
    assert why in str(wrong.value)
    assert not re.search(r"whsec_[A-Za-z0-9]|a secret|pw", str(wrong.value))
    assert SECRET[6:30] not in str(wrong.value)


def test_http_to_another_machine_is_allowed_where_it_is_said(tmp_path: Path) -> None:
    assert not endpoint.parse(f"http://x/?secret={SECRET}&insecure=true").encrypted
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match="no file of certificates"):
        Webhook(f"https://x/?secret={SECRET}&ca={tmp_path}/ca.pem")


def test_no_secret_stands_in_the_repr_of_an_endpoint() -> None:
    assert SECRET.removeprefix("whsec_") not in repr(endpoint.parse(f"https://x/?secret={SECRET}"))
