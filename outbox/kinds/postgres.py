"""PostgreSQL: a database and the role that opens it."""

from outbox.kinds.fields import Field, Kind, text, uuid_text, whole_number

# PostgreSQL cuts longer names, and a cut name is another name. It accepts blanks.
_NAME = text(63, may_be_blank=True)

KIND = Kind(
    name="postgres",
    about="a database and the role that opens it",
    fields=(
        Field("database", _NAME, "the database's name", required=True),
        Field("role", _NAME, "the role that opens it, dropped with it", own=True),
        Field("oid", whole_number(1, 2**32 - 1), "pg_database.oid"),
        Field("role_oid", whole_number(1, 2**32 - 1), "the role's pg_roles.oid"),
        Field("system_identifier", whole_number(1, 2**64 - 1), "the cluster's, as pg_control_system() shows it"),
        Field("generation", uuid_text, "which resource's it is; the comments on database and role end with it"),
    ),
    example={"database": "orders", "role": "orders_app"},
)
