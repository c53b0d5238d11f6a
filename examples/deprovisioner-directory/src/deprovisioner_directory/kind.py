"""The fields of a directory's manifest."""

from typing import Any

from deprovisioner.sdk import Field, Kind, text, uuid_text

_text = text(200)


def _name(value: Any) -> str:
    name: str = _text(value)
    if "/" in name or name.startswith("."):
        raise ValueError("must be the name of one folder, and must not begin with '.'")
    return name


KIND = Kind(
    name="directory",
    about="a directory tree on a file server",
    fields=(
        Field("name", _name, "the folder's name, directly under the root", required=True),
        Field("generation", uuid_text, "which resource's it is; the file `.deprovisioner` in the folder says so"),
        Field("server", uuid_text, "the file server's identity: the file `.deprovisioner/server` under its root"),
    ),
    example={"name": "orders"},
)
