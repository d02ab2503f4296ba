"""The ways to other nodes: one channel for each address, made when first used.

Whoever needs another node (the list of nodes, logs, joins, signatures) asks here for a stub and uses it at once; a
stub that is kept may stand on a connection that was given up meanwhile.

Theory: a channel keeps the credentials it was made with, and certificates are renewed while the node runs. So a
channel that is older than an hour is replaced by a new one, which reads the files anew, and the old one is closed
when it is at rest: grpc itself lets go of a connection that carried no call for `CLIENT_IDLE_S`, and the channel's
state says so. A call that lasts (a log that is followed) keeps its old channel until it ends. Addresses that nobody
asks for any more are forgotten in the same way.

Certificates say who a node is, not where: every node's carries the name NODE_DNS_NAME, and that is what is checked,
so that an address may change.

Must not do: retry, choose among nodes, or know what is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

import grpc

from pilfer.address import NODE_DNS_NAME
from pilfer.v1 import nodes_pb2_grpc, tasks_pb2_grpc

#: A channel older than this is replaced by one that reads the certificates anew.
CHANNEL_LIFE_S = 3600.0
#: An address that nobody asked for during this time is forgotten.
UNUSED_S = 600.0
#: A connection without a call is given up by grpc after this time.
CLIENT_IDLE_S = 60.0
TIDY_EVERY_S = 60.0

#: Metadata of a call that a node makes for somebody else: ROLE NAME of the caller, the name percent-encoded. Believed
#: only from a node.
ON_BEHALF_OF = "pilfer-on-behalf-of"
#: Metadata of a call that was handed on: who gets it answers by itself and hands it on no further.
FORWARDED = "pilfer-forwarded"

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.ssl_target_name_override", NODE_DNS_NAME),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),  # the other node's own limit answers with a better error
    # A frozen node or a cut line is noticed within 8 s also under a call that is quiet (`keepalive_timeout_ms` alone
    # does nothing in current grpc). Nodes allow a ping every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.client_idle_timeout_ms", int(CLIENT_IDLE_S * 1000)),
    # A node that was restarted is back within seconds; grpc's default waits up to two minutes between attempts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # A new channel with equal arguments would otherwise go on with the old one's connection, and its certificate.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # an http_proxy in the environment is not meant for us
)

#: States in which a channel carries no call.
_AT_REST = (
    grpc.ChannelConnectivity.IDLE,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)


@dataclass(slots=True)
class _Way:
    channel: grpc.aio.Channel
    made_at: float
    used_at: float
    nodes: nodes_pb2_grpc.NodeServiceAsyncStub = field(init=False)
    tasks: tasks_pb2_grpc.TaskServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = nodes_pb2_grpc.NodeServiceStub(self.channel)
        self.tasks = tasks_pb2_grpc.TaskServiceStub(self.channel)


class PeerChannels:
    """Stubs for other nodes by their HOST:PORT. Lives on one loop; `run` closes what is no longer needed."""

    def __init__(
        self,
        credentials: Callable[[], grpc.ChannelCredentials | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """credentials: asked for each new channel, so that it reads the certificates of that moment; None: plain."""
        self._credentials = credentials
        self._clock = clock
        #: The channel in use for each address.
        self._ways: dict[str, _Way] = {}
        #: Replaced or forgotten, and not at rest yet.
        self._retired: list[_Way] = []
        self._is_closed = False

    def __len__(self) -> int:
        """Channels that are open, those given up and not at rest yet among them."""
        return len(self._ways) + len(self._retired)

    def nodes(self, address: str) -> nodes_pb2_grpc.NodeServiceAsyncStub:
        """NodeService of the node at HOST:PORT. Nothing is connected before the first call. Raises OSError where the
        certificates cannot be read."""
        return self._way(address).nodes

    def tasks(self, address: str) -> tasks_pb2_grpc.TaskServiceAsyncStub:
        """TaskService, as `nodes`."""
        return self._way(address).tasks

    def _way(self, address: str) -> _Way:
        if self._is_closed:
            raise RuntimeError("the channels to other nodes are closed; this is a defect of Pilfer")
        now = self._clock()
        way = self._ways.get(address)
        if way is not None and now - way.made_at < CHANNEL_LIFE_S:
            way.used_at = now
            return way
        if way is not None:
            self._retired.append(way)
        credentials = self._credentials()
        if credentials is None:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        self._ways[address] = way = _Way(channel, made_at=now, used_at=now)
        return way

    async def run(self) -> None:
        """Tidies up now and then. Ends when cancelled; `close` is still to be called."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            await self.tidy()

    async def tidy(self) -> None:
        """Forgets addresses that nobody asks for, and closes what was given up and carries no call any more."""
        now = self._clock()
        for address, way in [*self._ways.items()]:
            if now - way.used_at >= UNUSED_S:
                self._retired.append(self._ways.pop(address))
        retired, self._retired = self._retired, []
        for way in retired:
            if way.channel.get_state() in _AT_REST:
                await way.channel.close()
            else:
                self._retired.append(way)

    async def close(self) -> None:
        """Ends all calls and connections."""
        self._is_closed = True
        for way in (*self._ways.values(), *self._retired):
            await way.channel.close()
        self._ways.clear()
        self._retired.clear()


def forwarding(role: str, name: str) -> tuple[tuple[str, str], ...]:
    """Metadata for a call made for a caller with this role and name."""
    # Metadata is ASCII; names of certificates and people need not be.
    return ((FORWARDED, "1"), (ON_BEHALF_OF, f"{role} {quote(name, safe='')}"))


def parse_on_behalf_of(value: str) -> tuple[str, str]:
    """Role and name, as `forwarding` wrote them. Raises ValueError for what it did not."""
    role, space, name = value.partition(" ")
    if not role or not space or not value.isascii():
        raise ValueError(f"not ROLE NAME: {value!r}")
    return role, unquote(name, errors="strict")
