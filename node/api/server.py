"""The node's gRPC server: which services it serves, and where.

Always a unix socket in the data directory, the local admin's door: 0600 in a 0700 directory. A TCP port only with
`--listen`, with mutual TLS or, on loopback alone, in plain.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from node.api.callers import CallerCheck
from node.api.log import LogCall
from node.api.tasks import TaskCalls
from node.api.watch import WatchCall
from node.listening import AddressInUse, cannot_listen
from node.trust.material import Trust
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc, tasks_pb2, tasks_pb2_grpc

#: One call (design, section 7).
CALL_MAX_BYTES = 64 * 1024 * 1024

TASK_SERVICE = tasks_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name
NODE_SERVICE = nodes_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", CALL_MAX_BYTES),
    ("grpc.max_send_message_length", -1),
    # Without it a second node would share the port silently and take half of the calls.
    ("grpc.so_reuseport", 0),
    # Clients that follow a quiet log keep the connection alive with pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def task_service(calls: TaskCalls, watch: WatchCall, log: LogCall) -> tasks_pb2_grpc.TaskServiceServicer:
    """TaskService, put together from its calls; each kind lives in a file of its own.

    grpc only looks the methods up by their names; forwarding them would cost every streamed message a hop.
    """
    methods = SimpleNamespace(
        Submit=calls.Submit,
        Cancel=calls.Cancel,
        Status=calls.Status,
        List=calls.List,
        Watch=watch.Watch,
        Log=log.Log,
    )
    return cast("tasks_pb2_grpc.TaskServiceServicer", methods)


def node_service(*parts: object) -> nodes_pb2_grpc.NodeServiceServicer:
    """NodeService, as `task_service`, from parts that each have some of its methods; what none has is UNIMPLEMENTED.

    Raises ValueError when two parts have the same method: one of them would never be called.
    """
    methods = SimpleNamespace()
    for method in nodes_pb2.DESCRIPTOR.services_by_name["NodeService"].methods:
        found = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
        if len(found) > 1:
            raise ValueError(f"{method.name} is there {len(found)} times")
        setattr(methods, method.name, found[0] if found else _unimplemented)
    return cast("nodes_pb2_grpc.NodeServiceServicer", methods)


async def _unimplemented(_request: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this node does not know that call: another version has it")


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address; trust None: plain text."""

    address: str
    trust: Trust | None


@contextlib.asynccontextmanager
async def serving(
    tasks: tasks_pb2_grpc.TaskServiceServicer,
    nodes: nodes_pb2_grpc.NodeServiceServicer,
    *,
    socket: Path,
    listen: Listen | None,
    is_removed: Callable[[str], bool] = lambda _host_id: False,
    stop_grace_s: float = 1.0,
) -> AsyncIterator[str | None]:
    """Serves while entered. Raises AddressInUse. Gives the TCP address, with the port that was chosen for port 0.

    is_removed: whether the host with this id was removed from the cluster; its certificates are refused.
    """
    server = grpc.aio.server(interceptors=(CallerCheck(is_removed),), options=OPTIONS)
    tasks_pb2_grpc.add_TaskServiceServicer_to_server(tasks, server)
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(nodes, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = (TASK_SERVICE, NODE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = _bind_tcp(server, listen) if listen is not None else None
    with _bound_unix(server, socket):
        await server.start()
        for name in ("", TASK_SERVICE, NODE_SERVICE):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield address
        finally:
            await healthy.enter_graceful_shutdown()
            await server.stop(stop_grace_s)


def _bind_tcp(server: grpc.aio.Server, listen: Listen) -> str:
    try:
        if listen.trust is None:
            port = server.add_insecure_port(listen.address)
        else:
            port = server.add_secure_port(listen.address, credentials(listen.trust))
    except RuntimeError as error:
        raise AddressInUse(cannot_listen(listen.address)) from error
    if port == 0:
        raise AddressInUse(cannot_listen(listen.address))
    return f"{listen.address.rpartition(':')[0]}:{port}"


def credentials(trust: Trust) -> grpc.ServerCredentials:
    """Mutual TLS; the certificate is read again when its files have changed, so that renewal needs no restart."""

    def load() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(trust.node_key.read_bytes(), trust.node_cert.read_bytes())],
            root_certificates=trust.ca_cert.read_bytes(),
        )

    seen = trust.node_cert.stat().st_mtime_ns

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = trust.node_cert.stat().st_mtime_ns
        if now == seen:
            return None
        seen = now
        return load()

    return grpc.dynamic_ssl_server_credentials(
        load(),
        fetch,  # type: ignore[arg-type]  # None, for no change, is grpc's contract, and missing in its stubs
        require_client_authentication=True,
    )


@contextlib.contextmanager
def _bound_unix(server: grpc.aio.Server, path: Path) -> Any:
    """Binds the socket by way of its directory's descriptor: a path of any length fits into sun_path that way."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The lock of the data directory is ours, so that a socket found here is a dead node's.
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:/proc/self/fd/{directory}/{path.name}")
        except RuntimeError as error:
            raise AddressInUse(f"cannot make the socket {path}: {error}") from error
        finally:
            os.umask(before)
        yield
    finally:
        os.close(directory)
        path.unlink(missing_ok=True)
