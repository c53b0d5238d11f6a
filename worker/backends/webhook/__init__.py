"""The platform's own provisioner, over HTTP."""

from typing import Any

from outbox.errors import SettingsError


class Webhook:
    """Being built."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise SettingsError("this kind is being built")
