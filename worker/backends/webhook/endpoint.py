"""What the dsn says: the provisioner's address, the secrets of the signatures, and how long to wait."""

import base64
import binascii
import ssl
from dataclasses import dataclass, field
from urllib.parse import unquote

import httpx
from standardwebhooks import Webhook as Signer

from outbox.errors import SettingsError

EXAMPLE = "https://provisioner.example.com/v1?secret=whsec_…"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Of a secret, without its base64: what Standard Webhooks asks for.
SECRET_BYTES = (24, 64)
# Seconds, by default and at most: one call; and a verb that the provisioner goes on with after its answer.
TIMEOUT, LONGEST_TIMEOUT = 30, 600
WAIT, LONGEST_WAIT = 3600, 86_400
KNOWN = ("ca", "insecure", "secret", "server", "timeout", "wait")


@dataclass(frozen=True)
class Endpoint:
    """A parsed dsn. No part of it but `url` may be shown."""

    url: httpx.URL  # ends with "/"
    signers: tuple[Signer, ...] = field(repr=False)  # the newest secret first
    timeout: int = TIMEOUT
    wait: int = WAIT
    server: str | None = None  # the one identity that is believed
    ca: str | None = None  # a file of certificates that may sign the provisioner's; None: those of this machine

    @property
    def encrypted(self) -> bool:
        """Whether what is sent is encrypted, or stays on this machine."""
        return self.url.scheme == "https" or self.url.host in LOOPBACK

    def tls(self) -> ssl.SSLContext:
        """What checks the provisioner's certificate, and its name; without TLS it is never used, and trusts nobody."""
        if self.url.scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return ssl.create_default_context(cafile=self.ca)


def parse(dsn: str) -> Endpoint:
    """The parts of `URL?secret=…`. Raises SettingsError, which shows no value of the dsn."""
    address, _, query = dsn.partition("?")
    words = _words(query)
    url = _url(address)
    found = Endpoint(
        url,
        tuple(_signer(secret) for secret in words.get("secret", ())),
        timeout=_seconds(words, "timeout", TIMEOUT, LONGEST_TIMEOUT),
        wait=_seconds(words, "wait", WAIT, LONGEST_WAIT),
        server=_one(words, "server"),
        ca=_one(words, "ca"),
    )
    if not found.signers:
        raise SettingsError(f"the dsn has no `secret`: it must look like {EXAMPLE}")
    if not found.encrypted and _one(words, "insecure") != "true":
        raise SettingsError(
            "the dsn is http:// to another machine, where credentials would be readable on their way: "
            "use https://, or add `&insecure=true`"
        )
    try:
        _ = found.ca and found.tls()
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"`ca` of the dsn is no file of certificates ({type(error).__name__})") from None
    return found


def _words(query: str) -> dict[str, list[str]]:
    """The parameters. A `+` stays one: base64 has it, and nobody writes a blank here."""
    words: dict[str, list[str]] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in KNOWN:
            raise SettingsError(f"the dsn has a parameter that is unknown; known: {', '.join(KNOWN)}")
        words.setdefault(name, []).append(unquote(value))
    return words


def _url(address: str) -> httpx.URL:
    wrong = SettingsError(f"the dsn is no http:// or https:// address of a provisioner: it must look like {EXAMPLE}")
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        raise wrong from None
    if url.scheme not in ("http", "https") or not url.host or url.fragment:
        raise wrong
    if url.userinfo:
        raise SettingsError("the dsn must have no user and password: requests are signed, with `secret`")
    return url.copy_with(path=f"{url.path.rstrip('/')}/")


def _signer(secret: str) -> Signer:
    try:
        raw = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not SECRET_BYTES[0] <= len(raw) <= SECRET_BYTES[1]:
        raise SettingsError(
            f"`secret` of the dsn must be whsec_ and the base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[1]} bytes, such "
            "as `echo whsec_$(openssl rand -base64 32)` prints"
        )
    return Signer(raw)


def _seconds(words: dict[str, list[str]], name: str, default: int, most: int) -> int:
    said = _one(words, name)
    if said is None:
        return default
    if not said.isascii() or not said.isdigit() or not 1 <= int(said[:9]) <= most:
        raise SettingsError(f"`{name}` of the dsn must be seconds, a whole number from 1 to {most}")
    return int(said)


def _one(words: dict[str, list[str]], name: str) -> str | None:
    said = words.get(name, [])
    if len(said) > 1:
        raise SettingsError(f"the dsn has `{name}` twice")
    return said[0] if said and said[0] else None
