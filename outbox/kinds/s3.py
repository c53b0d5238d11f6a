"""Object storage that speaks S3: a bucket, with all versions of its objects."""

from outbox.kinds.fields import Field, Kind, text, uuid_text

KIND = Kind(
    name="s3",
    about="a bucket, with all versions of its objects",
    fields=(
        Field("bucket", text(63), "the bucket's name", required=True),
        Field("owner", text(), "the account that owns it, as the endpoint tells"),
        Field("generation", uuid_text, "which resource's it is; the bucket's tag `deprovisioner` has it"),
        Field("server", text(), "the endpoint's identity: a UUID in the service's own bucket there"),
    ),
    example={"bucket": "orders"},
)
