"""Bearer tokens: 256 random bits, of which only the SHA-256 is stored.

A slow hash would add nothing: an attacker has no dictionary of 256-bit secrets to try.
"""

import datetime as dt
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import acts
from outbox.errors import BadRequest, NotFound
from outbox.events import Event
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


def _noted(act: str, event: Event) -> str:
    """The CTEs that write the event; it tells nothing of the secret."""
    who = {"actor": "CAST(:actor AS text)", "reason": "CAST(:reason AS text)"}
    which = "jsonb_build_object('token', id, 'name', name, 'role', role, 'tenant', tenant)"
    return acts.noted(act, f"'{event}'", **who, detail=which)


_CREATE = text(f"""
    WITH created AS (
        INSERT INTO tokens (name, role, tenant, digest) VALUES (:name, :role, :tenant, :digest)
     RETURNING {_COLUMNS}
    ), {_noted("created", Event.TOKEN_CREATED)}
    SELECT {_COLUMNS} FROM created""")


def create(
    db: Connection, *, role: TokenRole, tenant: str | None, name: str, actor: str, reason: str | None = None
) -> tuple[Token, str]:
    """A new token and its secret, which can be shown only now. Raises BadRequest."""
    if (role == TokenRole.TENANT) != bool(tenant):
        raise BadRequest("a token of role `tenant` needs the name of its tenant; a token of role `operator` has none")
    secret = PREFIX + secrets.token_urlsafe(32)
    asked = {"name": name, "role": role, "tenant": tenant, "digest": _digest(secret), "actor": actor, "reason": reason}
    return _token(db.execute(_CREATE, asked).one()), secret


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


_REVOKE = text(f"""
    WITH revoked AS (
        UPDATE tokens SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL
     RETURNING {_COLUMNS}
    ), {_noted("revoked", Event.TOKEN_REVOKED)}
    SELECT {_COLUMNS} FROM revoked""")
_FIND = text(f"SELECT {_COLUMNS} FROM tokens WHERE id = :id")


def revoke(db: Connection, token_id: int, *, actor: str, reason: str | None = None) -> Token:
    """Make the token invalid; revoking it again changes nothing. Raises NotFound."""
    row = db.execute(_REVOKE, {"id": token_id, "actor": actor, "reason": reason}).one_or_none()
    row = row or db.execute(_FIND, {"id": token_id}).one_or_none()  # it was revoked before
    if row is None:
        raise NotFound(f"there is no token {token_id}")
    return _token(row)


def _token(row: Row[Any]) -> Token:
    return Token(**{**row._mapping, "role": TokenRole(row.role)})


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
