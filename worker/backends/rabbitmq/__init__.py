"""RabbitMQ: a vhost and the user that opens it."""

from typing import Any

from outbox.errors import SettingsError


class Rabbitmq:
    """Being built."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise SettingsError("this kind is being built")
