"""What is not as it should be on an endpoint: rights, conditions, the service's own bucket."""

from collections.abc import Iterator

from outbox.errors import Refused
from worker.backends import Finding
from worker.backends.s3 import identity, memory, rights
from worker.backends.s3.session import Server, Session


def check(server: Server) -> list[Finding]:
    """See `worker.backends.check`; it writes nothing but the endpoint's identity over itself."""
    session = server.session()
    return [*_service_bucket(session), *rights.missing_everywhere(session), *_door(session)]


def _service_bucket(session: Session) -> Iterator[Finding]:
    try:
        if identity.server_id(session) is not None and not memory.compares(session):
            yield Finding(
                "no_conditions",
                "the endpoint ignores If-None-Match, so it keeps no memory of the control database, and two workers "
                "could each give it an identity",
                "use an endpoint with conditional writes (AWS has them since 2024)",
            )
    except Refused as error:
        bucket = session.endpoint.service_bucket
        arn = f"arn:{session.endpoint.partition}:s3:::{bucket}"
        yield Finding(
            "right_missing",
            str(error),
            '{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"], '
            f'"Resource": ["{arn}", "{arn}/*"]}}',
        )


def _door(session: Session) -> Iterator[Finding]:
    at = session.endpoint
    if at.url is not None and at.url.startswith("http://") and not at.url.startswith(("http://127.", "http://[::1]")):
        what = "requests and objects travel without encryption"
        yield Finding("not_encrypted", what, "leave `tls=false` out of the dsn, and give the endpoint a certificate")
