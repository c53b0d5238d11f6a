"""Object storage that speaks S3: a bucket, with all versions of its objects."""

from typing import Any

from outbox.errors import SettingsError


class S3:
    """Being built."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise SettingsError("this kind is being built")
