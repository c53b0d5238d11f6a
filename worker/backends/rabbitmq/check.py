"""What is not as it should be on a server: version, rights, doors, alarms; with commands that mend it."""

import ipaddress
from collections.abc import Iterator

from outbox.rows import Json
from worker.backends import Finding
from worker.backends.rabbitmq import rights
from worker.backends.rabbitmq.session import Server, Session

OLDEST = (3, 10)  # the only version that tests run on


def check(server: Server) -> list[Finding]:
    """See `worker.backends.check`; changes nothing."""
    with server.connect() as session:
        if mend := rights.missing(session):
            return [Finding("rights_too_few", rights.WHAT, mend)]
        return [*_server(session), *_rights(session), *_doors(session), *_nodes(session)]


def _server(session: Session) -> Iterator[Finding]:
    seen = session.need("overview", columns="rabbitmq_version,disable_stats")
    if tuple(int(number) for number in seen["rabbitmq_version"].split(".")[:2]) < OLDEST:
        what = f"the server is version {seen['rabbitmq_version']}; tests run on 3.10"
        yield Finding("version_old", what, "upgrade the server")
    flags = {one["name"]: one["state"] for one in session.get("feature-flags", columns="name,state") or []}
    if flags.get("virtual_host_metadata") == "disabled":
        mend = "rabbitmqctl enable_feature_flag virtual_host_metadata  -- when all nodes have the same version"
        yield Finding("marks_not_kept", "the server keeps no tags of vhosts: nothing is provisioned", mend)


def _rights(session: Session) -> Iterator[Finding]:
    name = session.server.user
    if opened := [one["vhost"] for one in session.get("users", name, "permissions") or []]:
        what = f"the service's account opens {len(opened)} vhosts, such as {opened[0]!r}, which it does not need"
        yield Finding("rights_too_many", what, f"rabbitmqctl clear_permissions -p {opened[0]} {name}")


def _doors(session: Session) -> Iterator[Finding]:
    if session.get("users", "guest") is not None:
        what = "the user `guest` is there, whose password everybody knows"
        yield Finding("public_connect", what, "rabbitmqctl delete_user guest")
    if not session.server.encrypted and not _is_loopback(session.server.host):
        what = "the service's password goes over the network in clear text"
        yield Finding(
            "connection_unencrypted", what, "a TLS listener for the management plugin, and https:// in the dsn"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _nodes(session: Session) -> Iterator[Finding]:
    found: list[Json] = session.need("nodes", columns="name,running,partitions,mem_alarm,disk_free_alarm")
    for one in found:
        if not one.get("running"):
            mend = f"start it, or: rabbitmqctl forget_cluster_node {one['name']}"
            yield Finding("node_down", f"node {one['name']!r} is down: nothing is destroyed meanwhile", mend)
        if one.get("partitions"):
            what = f"the cluster is partitioned, as node {one['name']!r} sees it: no answer of it counts"
            yield Finding("partitioned", what, "restart the nodes of the part that is to lose its changes")
        for alarm in ("mem_alarm", "disk_free_alarm"):
            if one.get(alarm):
                what = f"node {one['name']!r} has an alarm ({alarm}): it blocks whoever publishes"
                yield Finding("alarm", what, "give it room")
