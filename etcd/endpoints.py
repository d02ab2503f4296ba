"""Where etcd is: one channel per member, and which one is in use.

The client rotates by itself instead of handing all addresses to grpc: `pick_first` stays on a frozen member and
`round_robin` fails a share of all calls for as long as one is frozen (measured).

Theory. The addresses are asked for at each use, since members come and go while a client lives. The first one is
preferred (a voter's own etcd, on loopback). A failure moves on to the next one. Whoever is away from the first asks it
a real question from time to time, and returns when it has answered: an open connection proves nothing of a member that
is frozen or cut off from its quorum. The connection to an address that vanished is closed when every call that may
still be under way on it has ended by its own deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from etcd import rpc_pb2 as pb
from etcd import rpc_pb2_grpc as rpc
from etcd.errors import StoreUnavailable

#: A frozen peer is noticed after keepalive_time + ping_timeout (7 to 8 s measured). `keepalive_timeout_ms` alone does
#: nothing in current grpc. etcd closes connections that ping more often than its --grpc-keepalive-min-time (5 s).
_OPTIONS: tuple[tuple[str, int | str], ...] = (
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

#: Away from the preferred endpoint, it is asked this often whether it is back.
RETURN_AFTER_S = 15.0
#: How long it has for its answer.
RETURN_PROBE_S = 2.0
#: The connection to an address that vanished is closed after this. Streams on it resume elsewhere.
CLOSE_AFTER_S = 60.0

#: A channel keeps the certificate that it was made with. One that fails and is older than this is made anew.
CHANNEL_LIFE_S = 3600.0

#: The addresses now, the preferred one first. Asked on the client's loop; another thread may change what it answers.
AddressSource = Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: whom to trust, and who we are."""

    ca: Path
    cert: Path
    key: Path
    #: The name that the server's certificate must carry, instead of the address dialed: addresses may change, and
    #: whoever took over the address of a member has no such certificate. None: the address dialed.
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read anew for each channel: certificates are renewed while we run."""
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())


class Endpoint:
    """One member: its channel and the typed stubs on it."""

    def __init__(self, address: str, tls: ClientTls | None) -> None:
        self.address = address
        self.made_at = time.monotonic()
        if tls is None:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            named = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
            self.channel = grpc.aio.secure_channel(address, tls.credentials(), options=(*_OPTIONS, *named))
        self.kv = rpc.KVStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.cluster = rpc.ClusterStub(self.channel)
        self.maintenance = rpc.MaintenanceStub(self.channel)


class Endpoints:
    """The members known to a client; exactly one is current. To be used on one loop."""

    def __init__(
        self, addresses: Sequence[str] | AddressSource, tls: ClientTls | None, *, return_after_s: float = RETURN_AFTER_S
    ) -> None:
        """addresses: as they are, or whom to ask for them. While that answers with nothing, the last ones count."""
        if callable(addresses):
            self._ask: AddressSource = addresses
        else:
            fixed = tuple(addresses)
            if not fixed:
                raise ValueError("a client of etcd needs at least one endpoint")
            self._ask = lambda: fixed
        self._tls = tls
        self._return_after_s = return_after_s
        self._addresses: tuple[str, ...] = ()
        #: Made when first used; kept, so that coming back costs no new handshake.
        self._made: dict[str, Endpoint] = {}
        #: When the address was first missed, by the monotonic clock.
        self._vanished: dict[str, float] = {}
        self._current = ""
        #: Since when the current one is not the first, or when the first one was asked last.
        self._away_since = 0.0
        self._upkeep: set[asyncio.Task[None]] = set()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._known())

    def current(self) -> Endpoint:
        """The endpoint to use now; must be called on the loop that the client lives on. Raises StoreUnavailable while
        no address is known at all, or where no connection can be made."""
        addresses = self._known()
        if not addresses:
            raise StoreUnavailable("no address of any member of etcd is known")
        if self._current != addresses[0]:
            self._look_back(addresses[0])
        if self._vanished:
            self._close_vanished()
        return self._endpoint(self._current)

    def rotate(self, failed: Endpoint | None = None) -> None:
        """Goes on to the next member. With `failed`, only if that one is still current: of a hundred calls that fail
        together the first one rotates."""
        addresses = self._known()
        if failed is not None:
            self._renew(failed)
        if addresses and (failed is None or self._current == failed.address):
            if self._current == addresses[0]:
                self._away_since = time.monotonic()
            self._current = addresses[(addresses.index(self._current) + 1) % len(addresses)]

    async def close(self) -> None:
        """Ends all calls and connections."""
        self.is_closed = True
        upkeep, self._upkeep = self._upkeep, set()
        for task in upkeep:
            task.cancel()
        if upkeep:
            await asyncio.wait(upkeep)
        made, self._made = self._made, {}
        for endpoint in made.values():
            await endpoint.channel.close()

    def _renew(self, failed: Endpoint) -> None:
        """Its certificate may have run out while the connection stood; the file has a newer one by then."""
        is_old = time.monotonic() - failed.made_at >= CHANNEL_LIFE_S
        if is_old and self._made.get(failed.address) is failed and not self.is_closed:
            del self._made[failed.address]
            self._start(self._close(failed))

    # Which

    def _known(self) -> tuple[str, ...]:
        """The addresses now; `_current` is one of them."""
        asked = self._ask()
        if asked is self._addresses or not asked:
            return self._addresses
        addresses = tuple(asked)
        if addresses != self._addresses:
            now = time.monotonic()
            self._vanished = {
                address: self._vanished.get(address, now) for address in self._made if address not in addresses
            }
            if self._current not in addresses:
                self._current = addresses[0]
        self._addresses = addresses
        return addresses

    def _endpoint(self, address: str) -> Endpoint:
        """Raises StoreUnavailable where the certificates cannot be read now (too many open files, a disk that does
        not answer): that costs whoever calls this call, as a member that is down does."""
        endpoint = self._made.get(address)
        if endpoint is None:
            try:
                endpoint = self._made[address] = Endpoint(address, self._tls)
            except OSError as error:
                raise StoreUnavailable(f"the certificates for etcd at {address} cannot be read: {error}") from error
        return endpoint

    def _look_back(self, first: str) -> None:
        now = time.monotonic()
        if now - self._away_since >= self._return_after_s and not self.is_closed:
            self._away_since = now
            self._start(self._return_to(first))

    async def _return_to(self, first: str) -> None:
        # Linearizable: a member without a quorum must not get us back.
        question = pb.RangeRequest(key=b"\0", count_only=True)
        try:
            await self._endpoint(first).kv.Range(question, timeout=RETURN_PROBE_S)
        except (grpc.aio.AioRpcError, StoreUnavailable):
            return
        if self._known()[:1] == (first,):
            self._current = first

    def _close_vanished(self) -> None:
        now = time.monotonic()
        for address, since in list(self._vanished.items()):
            if now - since >= CLOSE_AFTER_S:
                del self._vanished[address]
                # `_renew` may have closed it before.
                if (endpoint := self._made.pop(address, None)) is not None:
                    self._start(self._close(endpoint))

    async def _close(self, endpoint: Endpoint) -> None:
        await endpoint.channel.close()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._upkeep.add(task)
        task.add_done_callback(self._upkeep.discard)
