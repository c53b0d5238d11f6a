"""MariaDB: a schema and the user that opens it."""

from outbox.kinds.fields import Field, Kind, text, uuid_text

KIND = Kind(
    name="mysql",
    about="a schema and the user that opens it",
    fields=(
        Field("database", text(64), "the schema's name, exactly as the server shows it", required=True),
        Field("user", text(128), "the user that opens it, at every host; dropped with it"),
        Field(
            "generation",
            uuid_text,
            "which resource's it is; the schema's comment ends with it, and the user has a role with it",
        ),
        Field("server", text(), "the server's identity, from the service's own schema"),
    ),
    example={"database": "orders", "user": "orders_app"},
)
