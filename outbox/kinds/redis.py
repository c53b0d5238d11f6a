"""Redis and Valkey: an ACL user and the keys under its prefix."""

from typing import Any

from outbox.kinds.fields import Field, Kind, text, uuid_text

_WORD = text()


def _prefix(value: Any) -> str:
    prefix: str = _WORD(value)
    if len(prefix) < 2 or not prefix.endswith(":"):
        raise ValueError("must end with ':', or it would match its neighbours' keys")
    return prefix


KIND = Kind(
    name="redis",
    about="an ACL user and the keys under its prefix",
    fields=(
        Field("user", _WORD, "the ACL user's name", required=True),
        Field("prefix", _prefix, "what each of its keys begins with; ends with ':'", required=True),
        Field("generation", uuid_text, "which resource's it is; the value of the key `deprovisioner:gen:<prefix>`"),
        Field("server", _WORD, "the server's identity: its ACL user `deprovisioner:server:<this>`"),
    ),
    example={"user": "orders", "prefix": "orders:"},
)
