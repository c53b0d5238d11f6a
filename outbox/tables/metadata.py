"""What all tables share: their metadata, the column of a time, and the CHECK of an enum's column."""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "fk": "%(table_name)s_%(column_0_name)s_fkey"},
)


def timestamp(name: str, *, now: bool = False) -> "sa.Column[object]":
    """A time with time zone: set to now() at INSERT and never NULL when `now`, else NULL until it is set."""
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=not now,
        server_default=sa.text("now()") if now else None,
    )


def one_of(column: str, words: type) -> str:
    """The condition of a CHECK that lets only the values of the enum `words` into the column."""
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"  # type: ignore[attr-defined]
