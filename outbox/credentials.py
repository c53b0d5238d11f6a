"""The credentials of resources, encrypted at rest with Fernet (AES-128-CBC and HMAC-SHA-256)."""

import json
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from outbox import settings
from outbox.errors import SettingsError
from outbox.rows import Json


def new_key() -> str:
    """A new key for DEPROVISIONER_CREDENTIALS_KEY."""
    return Fernet.generate_key().decode()


def seal(plain: Json) -> bytes:
    """Encrypt with the first key."""
    return _keys().encrypt(json.dumps(plain).encode())


def unseal(sealed: bytes) -> Json:
    """Decrypt with the key that fits. Raises SettingsError when none does."""
    try:
        opened: Json = json.loads(_keys().decrypt(sealed))
    except InvalidToken as error:
        raise SettingsError(
            "no key in DEPROVISIONER_CREDENTIALS_KEY decrypts these credentials; put back the key that was removed"
        ) from error
    return opened


def check() -> None:
    """Raise SettingsError when the key is missing or malformed, so that it is noticed before the first resource."""
    _keys()


@lru_cache(maxsize=1)
def _keys() -> MultiFernet:
    try:
        return MultiFernet([Fernet(key.strip()) for key in settings.get().need("credentials_key").split(",")])
    except ValueError as error:
        raise SettingsError(f"DEPROVISIONER_CREDENTIALS_KEY is not a list of Fernet keys: {error}") from error
