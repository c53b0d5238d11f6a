"""The encryption of a snapshot, in chunks: what was cut, reordered, changed or made with another key is noticed.

A snapshot has a data key of its own, which DEPROVISIONER_CREDENTIALS_KEY wraps in the header. Each chunk is
AES-256-GCM; its nonce is its place and whether it is the last one (the STREAM construction, as age has it), and the
header is authenticated with it. docs/design.md says why.
"""

import base64
import json
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from outbox import credentials
from outbox.errors import SettingsError, Transient
from outbox.rows import Json

MAGIC = b"deprovisioner snapshot 1\n"
CHUNK = 1 << 20  # bytes of plain text: two of them are all the memory that a stream takes
_TAG = 16
_LONGEST_HEADER = 65_536

Write = Callable[[bytes], object]
Read = Callable[[int], bytes]


class Sealer:
    """Encrypts what is written to it; `finish` writes the last chunk, without which nothing can be read."""

    def __init__(self, write: Write, about: Json) -> None:
        key = AESGCM.generate_key(bit_length=256)
        wrapped = credentials.seal({"key": base64.b64encode(key).decode()}).decode()
        self._header = json.dumps({"key": wrapped, "about": about}).encode()
        self._chunks = AESGCM(key)
        self._write = write
        self._left = bytearray()
        self._place = 0
        self.written = 0  # bytes of the encrypted object
        self._put(MAGIC + len(self._header).to_bytes(4, "big") + self._header)

    def write(self, data: bytes) -> None:
        """Take more of the plain text."""
        self._left += data
        while len(self._left) > CHUNK:  # the last chunk must be known as such, so one chunk waits
            self._seal(bytes(self._left[:CHUNK]), last=False)
            del self._left[:CHUNK]

    def finish(self) -> None:
        """Write the last chunk."""
        self._seal(bytes(self._left), last=True)

    def _seal(self, plain: bytes, *, last: bool) -> None:
        self._put(self._chunks.encrypt(_nonce(self._place, last=last), plain, self._header))
        self._place += 1

    def _put(self, data: bytes) -> None:
        self._write(data)
        self.written += len(data)


class Unsealer:
    """Reads the plain text of a sealed object; `about` is what its writer said of it.

    Raises Transient where the object is damaged, and where no key opens it.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        if self._exactly(len(MAGIC)) != MAGIC:
            raise Transient("the snapshot is damaged: it does not begin as one")
        size = int.from_bytes(self._exactly(4), "big")
        if size > _LONGEST_HEADER:
            raise Transient("the snapshot is damaged: its header is too long")
        self._header = self._exactly(size)
        try:
            header = json.loads(self._header)
            self.about: Json = header["about"]
            key = base64.b64decode(credentials.unseal(header["key"].encode())["key"])
        except SettingsError as error:
            raise Transient(
                "no key in DEPROVISIONER_CREDENTIALS_KEY opens the snapshot: put back the key that was removed; if none"
                " was, the snapshot is damaged"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Transient("the snapshot is damaged: its header cannot be read") from error
        self._chunks = AESGCM(key)
        self._place = 0
        self._plain = b""
        self._next = self._exactly(CHUNK + _TAG)
        self._ended = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes of the plain text; none at its end, which was then seen to be the true end."""
        while not self._plain and not self._ended:
            self._open_next()
        found, self._plain = self._plain[:size], self._plain[size:]
        return found

    def _open_next(self) -> None:
        sealed, self._next = self._next, self._exactly(CHUNK + _TAG)
        self._ended = not self._next
        try:
            self._plain = self._chunks.decrypt(_nonce(self._place, last=self._ended), sealed, self._header)
        except (InvalidTag, ValueError) as error:
            raise Transient(
                f"the snapshot is damaged, or was cut: chunk {self._place} is not what was written"
            ) from error
        self._place += 1

    def _exactly(self, size: int) -> bytes:
        """So many bytes, fewer only at the end of the object."""
        parts = bytearray()
        while len(parts) < size and (part := self._read(size - len(parts))):
            parts += part
        return bytes(parts)


def _nonce(place: int, *, last: bool) -> bytes:
    return place.to_bytes(11, "big") + bytes([last])
