"""The platform's own provisioner, over HTTP."""

from outbox.kinds.fields import Field, Kind, text, uuid_text

KIND = Kind(
    name="webhook",
    about="whatever the platform's own provisioner makes",
    fields=(
        Field("external", text(), "the provisioner's own name for it", required=True),
        Field("generation", uuid_text, "which resource's it is; the provisioner keeps it with the object"),
        Field("server", text(), "the provisioner's identity: what its capabilities document calls `server`"),
    ),
    example={"external": "orders-7"},
)
