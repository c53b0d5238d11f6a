"""See a customer's login work again after a release."""

import ssl

import amqp
from amqp import exceptions

from outbox.errors import Transient, Unavailable
from outbox.rows import Json
from worker.backends.rabbitmq import endpoint, marks
from worker.backends.rabbitmq.quarantine import is_shut, limit, must_be_whole
from worker.backends.rabbitmq.session import Server

TIMEOUT_SECONDS = 10


def prove(server: Server, manifest: Json, credentials: Json | None) -> Json:
    """An AMQP client opens the vhost at the server's own address; see `worker.backends.prove`.

    Without credentials, which an adopted vhost has not: neither the vhost nor its user is in quarantine.
    """
    with server.connect() as session:
        vhost, user = must_be_whole(session, manifest)
        if marks.note(marks.of(vhost)) is not None or (user is not None and is_shut(user)):
            raise Transient(f"vhost {manifest['vhost']!r} is still in quarantine")
        if credentials is None:
            return {"vhost": manifest["vhost"], "max_connections": limit(session, manifest)}
        port, tls = endpoint.listener(session)
    place = f"[{server.host}]:{port}" if ":" in server.host else f"{server.host}:{port}"
    connection = amqp.Connection(
        place,
        userid=manifest["user"],
        password=credentials["password"],
        virtual_host=manifest["vhost"],
        login_method="PLAIN",
        ssl={"ca_certs": server.cafile, "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": server.host}
        if tls
        else False,
        connect_timeout=TIMEOUT_SECONDS,
        read_timeout=TIMEOUT_SECONDS,
        write_timeout=TIMEOUT_SECONDS,
    )
    try:
        connection.connect()
        connection.close()
    except exceptions.AMQPError as error:  # its words name user and vhost, and may name more
        code = getattr(error, "reply_code", None) or type(error).__name__
        raise Transient(
            f"a login as user {manifest['user']!r} into vhost {manifest['vhost']!r} fails: {code}"
        ) from None
    except OSError as error:
        raise Unavailable(f"a login as user {manifest['user']!r} finds no server at {place}: {error}") from None
    finally:
        connection.collect()
    return {"vhost": manifest["vhost"], "user": manifest["user"], "login": True}
