"""Sessions that not even their first statement loses to a `transaction_timeout` of server, role or database."""

from collections.abc import Callable
from typing import Any

# The server versions that have the setting; older ones refuse a connection that names it.
_HAS_TRANSACTION_TIMEOUT = 170000
_NO_TRANSACTION_TIMEOUT = " -c transaction_timeout=0"


class Opener:
    """Opens psycopg2 connections to one server. The first of all tells the server's version, and is opened again."""

    def __init__(self) -> None:
        self._pins = False  # whether the server was seen to have the setting

    def open(self, connect: Callable[[str], Any], options: str) -> Any:
        """What `connect` returns for libpq's `options` and the pin. Raises what `connect` raises."""
        try:
            opened = self._connected(connect, options)
            if self._pins or opened.server_version < _HAS_TRANSACTION_TIMEOUT:
                return opened
            opened.close()
            self._pins = True
            return self._connected(connect, options)
        except Exception:
            self._pins = False  # the server may be an older one now
            raise

    def _connected(self, connect: Callable[[str], Any], options: str) -> Any:
        return connect(options + (_NO_TRANSACTION_TIMEOUT if self._pins else ""))
