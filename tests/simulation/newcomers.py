"""How hosts come to the cluster and are removed from it: the calls that any node answers, on virtual time.

`JoinCalls.Join` and `DrainCalls.Remove` are the node's own. Left out are the connection and the certificates: who
calls is told by the context, and nobody signs. The peer that is asked answers in its own process and over its own
link, so that it may die, be paused or be cut off in the middle of a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, NoReturn, TypeVar, cast

from google.rpc import error_details_pb2, status_pb2

from etcd.errors import StoreError
from node.api.callers import Caller
from node.api.drain import DrainCalls
from node.api.join import JoinCalls
from node.api.node_views import NodeViews
from node.cluster.host_record import HostRefused
from node.core.model import JoinToken
from node.core.newcomer import NAME_CLAIM_S, Why
from node.joining.cluster_memory import Contacts
from node.trust.authority import ROLE_JOIN
from node.trust.signer import Signer
from node.trust.tokens import Tokens
from pilfer.v1 import nodes_pb2
from pilfer.version import PROTOCOL, VERSION
from tests.simulation import clock
from tests.simulation.etcd import SimEtcd
from tests.simulation.host import Host
from tests.simulation.loop import of_nobody

CLUSTER = "00000000-0000-4000-8000-00000000c000"
#: As `node/joining/peer_answers.py` waits for one peer.
CALL_S = 10.0
RETRY_S = 0.5

Answer = TypeVar("Answer")


class Answered(Exception):  # noqa: N818  (a call's status, not always an error)
    """A status other than OK."""

    def __init__(self, code: object, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(f"{code}: {message}")
        #: For programs, as `Why` names them.
        self.reasons = reasons


class NotAdmitted(HostRefused):
    """Its token is used up."""


class Context:
    """Of one call: who calls, and how it ends."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def peer(self) -> str:
        return "ipv4:192.0.2.1:5000"

    async def abort(self, code: object, message: str, metadata: Sequence[tuple[str, bytes]] = ()) -> NoReturn:
        reasons: list[str] = []
        for _, value in metadata:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reasons.append(info.reason.lower())
        raise Answered(code, message, reasons)


class _Signer:
    async def sign(self, *_args: object, **_options: object) -> bytes:
        return b""


class Newcomers:
    """One cluster's tokens, joins and removals."""

    def __init__(
        self, hosts: Sequence[Host], etcd: SimEtcd, chance: Random, add: Callable[[str, str, str], None]
    ) -> None:
        """etcd: of people. add: is given each flaw (rule, what, words)."""
        self._hosts = hosts
        self._etcd = etcd
        self._chance = chance
        self._add = add
        self._tokens = Tokens(etcd)
        #: Who was given which name, and when.
        self._names: dict[str, tuple[str, float]] = {}
        self._removed: set[str] = set()
        self._admitted: dict[str, set[str]] = {}

    # Joins

    async def make_token(self, uses: int) -> JoinToken:
        """By somebody at any node; tried until it is there."""
        now = clock.wall()
        token = JoinToken(self._new_id(), now, now + 3600.0, uses)
        while True:
            try:
                await self._tokens.create(token, now)
            except StoreError:
                await asyncio.sleep(RETRY_S)
            else:
                return token

    def admission(
        self, host_id: str, token: JoinToken, name: str, *, at: float = 0.0
    ) -> Callable[[Host], Coroutine[Any, Any, None]]:
        """What a host of this id does at its start until it is a member. name: empty for one that is made up. at: no
        earlier, in seconds of the clock."""

        async def join(host: Host) -> None:
            if host.id != host_id:
                return
            await asyncio.sleep(max(at - clock.monotonic(), 0.0))
            while (answer := await self._ask_somebody(host, token, name)) is None:  # noqa: ASYNC110  (it asks peers)
                await asyncio.sleep(RETRY_S * self._chance.uniform(0.5, 1.0))
            host.node_name = answer.name
            host.tell(f"{host.name} has joined as {answer.name}")
            host.admission = None
            self._check(host, answer.name, token)

        return join

    async def _ask_somebody(self, host: Host, token: JoinToken, name: str) -> nodes_pb2.JoinResponse | None:
        peers = [peer for peer in self._hosts if peer is not host and peer.is_up and peer.admission is None]
        if not peers:
            return None
        peer = self._chance.choice(peers)
        etcd = peer.link.client()
        request = nodes_pb2.JoinRequest(
            protocol=PROTOCOL,
            version=VERSION,
            token_id=token.id,
            cluster_id=CLUSTER,
            host_id=host.id,
            name=name or "web",
            is_name_given=bool(name),
            address=host.address,
        )
        request.now.FromNanoseconds(int(clock.wall() * 1e9))
        call = self._calls(peer, etcd).Join(request, Context(Caller(ROLE_JOIN, token.id)))
        try:
            return await _called(peer, call)
        except Answered as refusal:
            if Why.TOKEN_USED_UP in refusal.reasons:
                raise NotAdmitted(str(refusal)) from None
            return None
        except TimeoutError:
            return None
        finally:
            await etcd.close()

    def _calls(self, peer: Host, etcd: SimEtcd) -> JoinCalls:
        return JoinCalls(
            etcd,
            cluster_id=CLUSTER,
            host_id=peer.id,
            ca_certificate=lambda: b"",
            signer=cast(Signer, _Signer()),
            tokens=Tokens(etcd),
            contacts=lambda: Contacts((), ()),
            living_node=lambda _: "",
            clock=clock.wall,
        )

    def _check(self, host: Host, name: str, token: JoinToken) -> None:
        now = clock.monotonic()
        holder, since = self._names.get(name, (host.id, 0.0))
        is_taken = holder != host.id and holder not in self._removed and now - since < NAME_CLAIM_S
        # By clocks that differ, a claim may be an old one.
        if is_taken and not any(one.wall_offset[0] for one in self._hosts):
            self._add("NamesAreUnique", host.id, f"it was given the name {name}, which {holder} was given before")
        self._names[name] = (host.id, now)
        admitted = self._admitted.setdefault(token.id, set())
        admitted.add(host.id)
        if token.uses and len(admitted) > token.uses:
            self._add(
                "TokensAreBounded", token.id, f"{len(admitted)} hosts joined with it, and it was for {token.uses}"
            )

    # Removals

    async def remove(self, host: Host, *, within_s: float) -> bool:
        """An operator tries until it is done, or until the time is up. Whether it was done."""
        host_id = host.id
        calls = DrainCalls(self._etcd, cast(NodeViews, None), wall_clock=clock.wall)
        until = clock.monotonic() + within_s
        while clock.monotonic() < until and host.id == host_id:
            try:
                await calls.Remove(nodes_pb2.RemoveRequest(node=host_id), Context(Caller("local")))
            except Answered:
                await asyncio.sleep(RETRY_S)
            else:
                self._removed.add(host_id)
                return True
        return False

    def _new_id(self) -> str:
        return f"00000000-0000-4000-8000-{self._chance.getrandbits(48):012x}"


async def _called(peer: Host, call: Awaitable[Answer]) -> Answer:
    """Its answer, if its process lives long enough to give it. Raises TimeoutError, and what the call raises."""
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    assert peer.node is not None

    async def serve() -> None:
        clock.wall_offset.set(peer.wall_offset)
        try:
            of_nobody(_settle, answer, await call, None)
        except Answered as status:
            of_nobody(_settle, answer, None, status)

    peer.node.process.start(serve())
    async with asyncio.timeout(CALL_S):
        return await answer


def _settle(answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
