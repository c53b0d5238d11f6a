"""Bearer tokens: 256 random bits, of which only the SHA-256 is stored.

A slow hash would add nothing: an attacker has no dictionary of 256-bit secrets to try.
"""

import datetime as dt
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox.errors import BadRequest, NotFound
from outbox.states import TokenRole

PREFIX = "dpr_"  # lets secret scanners find a leaked token


@dataclass(frozen=True)
class Token:
    """A token without its secret. `tenant` is None for the role `operator`."""

    id: int
    name: str
    role: TokenRole
    tenant: str | None
    created_at: dt.datetime
    revoked_at: dt.datetime | None

    @property
    def actor(self) -> str:
        """Its name in events. The id comes first, so that no token's name can imitate another token."""
        return f"token:{self.id}:{self.name}"


_COLUMNS = "id, name, role, tenant, created_at, revoked_at"


def create(db: Connection, *, role: TokenRole, tenant: str | None, name: str) -> tuple[Token, str]:
    """A new token and its secret, which can be shown only now. Raises BadRequest."""
    if (role == TokenRole.TENANT) != bool(tenant):
        raise BadRequest("a token of role `tenant` needs the name of its tenant; a token of role `operator` has none")
    secret = PREFIX + secrets.token_urlsafe(32)
    row = db.execute(
        text(f"""
        INSERT INTO tokens (name, role, tenant, digest) VALUES (:name, :role, :tenant, :digest)
     RETURNING {_COLUMNS}"""),
        {"name": name, "role": role, "tenant": tenant, "digest": _digest(secret)},
    ).one()
    return _token(row), secret


def find(db: Connection, secret: str) -> Token | None:
    """The token with that secret, unless it was revoked."""
    row = db.execute(
        text(f"SELECT {_COLUMNS} FROM tokens WHERE digest = :digest AND revoked_at IS NULL"),
        {"digest": _digest(secret)},
    ).one_or_none()
    return None if row is None else _token(row)


def list_all(db: Connection) -> list[Token]:
    """Every token, revoked ones too."""
    return [_token(row) for row in db.execute(text(f"SELECT {_COLUMNS} FROM tokens ORDER BY id"))]


def revoke(db: Connection, token_id: int) -> Token:
    """Make the token invalid; revoking it again changes nothing. Raises NotFound."""
    row = db.execute(
        text(f"UPDATE tokens SET revoked_at = COALESCE(revoked_at, now()) WHERE id = :id RETURNING {_COLUMNS}"),
        {"id": token_id},
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no token {token_id}")
    return _token(row)


def _token(row: Row[Any]) -> Token:
    return Token(**{**row._mapping, "role": TokenRole(row.role)})


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
