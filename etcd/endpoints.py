"""Where etcd is: one channel per member, and which one is in use.

The client rotates by itself instead of handing all addresses to grpc: `pick_first` stays on a frozen member and
`round_robin` fails a share of all calls for as long as one is frozen (measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from etcd import rpc_pb2_grpc as rpc

#: A frozen peer is noticed after keepalive_time + ping_timeout (7 to 8 s measured). `keepalive_timeout_ms` alone does
#: nothing in current grpc. etcd closes connections that ping more often than its --grpc-keepalive-min-time (5 s).
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),  # a replay of 100,000 events is one message of 7 MB
    ("grpc.max_send_message_length", -1),  # etcd's own limit answers with a better error
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # grpc's default waits up to two minutes between attempts; an etcd that was restarted is back within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Channels with equal arguments share one connection otherwise, and a second client would be no second connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # an http_proxy in the environment is not meant for us
)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: whom to trust, and who we are."""

    ca: Path
    cert: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read anew for each channel: certificates are renewed while we run."""
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())


class Endpoint:
    """One member: its channel and the typed stubs on it."""

    def __init__(self, address: str, tls: ClientTls | None) -> None:
        self.address = address
        if tls is None:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, tls.credentials(), options=_OPTIONS)
        self.kv = rpc.KVStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.cluster = rpc.ClusterStub(self.channel)
        self.maintenance = rpc.MaintenanceStub(self.channel)


class Endpoints:
    """The members known to a client; exactly one is current."""

    def __init__(self, addresses: Sequence[str], tls: ClientTls | None) -> None:
        if not addresses:
            raise ValueError("a client of etcd needs at least one endpoint")
        self._addresses = tuple(addresses)
        self._tls = tls
        #: Made when first used; kept, so that coming back costs no new handshake.
        self._made: dict[str, Endpoint] = {}
        self._current = 0
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._addresses)

    def current(self) -> Endpoint:
        """The endpoint to use now; must be called on the loop that the client lives on."""
        address = self._addresses[self._current]
        endpoint = self._made.get(address)
        if endpoint is None:
            endpoint = self._made[address] = Endpoint(address, self._tls)
        return endpoint

    def rotate(self, failed: Endpoint | None = None) -> None:
        """Goes on to the next member. With `failed`, only if that one is still current: of a hundred calls that fail
        together the first one rotates."""
        if failed is None or self._addresses[self._current] == failed.address:
            self._current = (self._current + 1) % len(self._addresses)

    async def close(self) -> None:
        """Ends all calls and connections."""
        self.is_closed = True
        made, self._made = self._made, {}
        for endpoint in made.values():
            await endpoint.channel.close()
