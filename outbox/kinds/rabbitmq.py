"""RabbitMQ: a vhost and the user that opens it."""

from outbox.kinds.fields import Field, Kind, text, uuid_text

KIND = Kind(
    name="rabbitmq",
    about="a vhost and the user that opens it",
    fields=(
        Field("vhost", text(), "the vhost's name", required=True),
        Field("user", text(), "the user that opens it, deleted with it"),
        Field("generation", uuid_text, "which resource's it is; the vhost's and the user's tags have it"),
        Field("server", text(), "the cluster's identity"),
    ),
    example={"vhost": "orders", "user": "orders_app"},
)
