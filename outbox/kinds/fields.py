"""A Kind is its manifest's fields, as data; and the checks that most fields need."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outbox.errors import BadRequest
from outbox.rows import Json, storable

# Takes the value that a caller gave, returns the value that is stored. Raises ValueError, which says what is wrong.
Check = Callable[[Any], Any]
REDACTED = "(secret)"


@dataclass(frozen=True)
class Field:
    """A field of a manifest. A field that is not required may be left out or null: the backend finds the value."""

    name: str
    check: Check
    about: str
    required: bool = False
    secret: bool = False  # its value is stored, and never shown
    own: bool = False  # no two objects share it, though it may be left out


@dataclass(frozen=True)
class Kind:
    """A kind of backend, and what its manifests hold. `example`: a manifest that a caller might give."""

    name: str
    about: str
    fields: tuple[Field, ...]
    example: Json

    def manifest(self, **values: Any) -> Json:
        """A manifest as a backend builds it, in the order of the fields; what is left out is None.

        Raises TypeError for a field that the kind does not have, or a required one that has no value.
        """
        if unknown := values.keys() - {field.name for field in self.fields}:
            raise TypeError(f"a manifest of kind {self.name!r} has no field {sorted(unknown)[0]!r}")
        if missing := [field.name for field in self.fields if field.required and values.get(field.name) is None]:
            raise TypeError(f"a manifest of kind {self.name!r} needs {missing[0]!r}")
        return {field.name: values.get(field.name) for field in self.fields}

    def check(self, manifest: Json) -> Json:
        """The manifest as it is stored, with every field. Raises BadRequest that names every wrong field."""
        known = [field.name for field in self.fields]
        wrong = [
            f"manifest.{name}: is not a field (known: {', '.join(known)})" for name in manifest.keys() - set(known)
        ]
        checked: Json = {}
        for field in self.fields:
            value = manifest.get(field.name)
            if value is None:
                checked[field.name] = None
                if field.required:
                    wrong.append(f"manifest.{field.name}: is required")
                continue
            try:
                checked[field.name] = field.check(value)
            except ValueError as error:
                wrong.append(f"manifest.{field.name}: {error}")
        if wrong:
            raise BadRequest("; ".join(sorted(wrong)))
        return checked

    def redacted(self, manifest: Json) -> Json:
        """The manifest with `(secret)` for the value of each secret field."""
        secret = {field.name for field in self.fields if field.secret}
        return {name: REDACTED if name in secret and value is not None else value for name, value in manifest.items()}


def text(max_length: int = 200, *, may_be_blank: bool = False) -> Check:
    """Text of 1 to `max_length` characters, none of them a control character."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("must be text")
        if not 1 <= len(value) <= max_length:
            raise ValueError(f"must have 1 to {max_length} characters, not {len(value)}")
        if not storable(value):
            raise ValueError("must not contain control characters")
        if not may_be_blank and not value.strip():
            raise ValueError("must not be blank")
        return value

    return check


def whole_number(least: int, most: int) -> Check:
    """A whole number from `least` to `most`; digits in a string too, since JavaScript is exact only to 2**53."""

    def check(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,30}", value, re.ASCII):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return check


def uuid_text(value: Any) -> str:
    """A UUID, in its usual form."""
    try:
        return str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        raise ValueError("must be a UUID") from None
