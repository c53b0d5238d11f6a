"""MariaDB and MySQL: a schema and the user that opens it."""

from outbox.kinds.fields import Field, Kind, text, uuid_text

_NAME = text(64)

KIND = Kind(
    name="mysql",
    about="a schema and the user that opens it",
    fields=(
        Field("database", _NAME, "the schema's name", required=True),
        Field("user", text(80), "the user that opens it, without a host; dropped with it"),
        Field(
            "generation", uuid_text, "which resource's it is; the table `deprovisioner_generation` of the schema has it"
        ),
        Field("server", text(), "the server's identity"),
    ),
    example={"database": "orders", "user": "orders_app"},
)
