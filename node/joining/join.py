"""A newcomer's side of joining: it asks peers until one admits it, or until none will.

A host is a member when it has its certificate and `cluster.json`; until then every start repeats the join,
with the same key, and the peers count it once (`node/api/join.py`). With `--peers` a node never founds a cluster: it
asks one peer after the other, and again, for as long as it lives, and says what each of them answers.

What ends it at once is a refusal that waiting does not mend. Most of them are the cluster's (the token, the name, the
host) and count whoever says so. Some are one peer's own (it belongs to another cluster, its clock is off, it is this
node itself, it is no node at all): then the other peers are still asked, and it fails when none admits. Three refusals
mend themselves within seconds or not at all, and are borne that long: a living node of this host or at this address
(its lease may be running out), and a connection that ends when the peer has seen our certificate (it may be stopping).

Must not do: start anything, or touch etcd.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random as random_module
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from node.core.newcomer import Newcomer, Why, refusal_of_names
from node.joining.cluster_memory import ClusterMemory, Contacts
from node.joining.handshake import Papers
from node.joining.peer_answers import CALL_TIMEOUT_S, JoinRefused, Refused, Said, Silent, ask
from node.joining.rounds import PACE, RANDOM, Pace, Rounds
from node.trust.join_token import BadJoinToken, JoinSecret, decode
from node.trust.material import install, make_request
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc
from pilfer.version import PROTOCOL, VERSION

log = logging.getLogger(__name__)

#: How long a living node of this host or at this address is borne: a lease runs out in 5 s by default, and a new
#: etcd leader begins it anew.
LEASE_PATIENCE_S: Final = 20.0
#: How long a peer is borne that ends the connection when it has seen our certificate: a node that stops is gone soon.
CERTIFICATE_PATIENCE_S: Final = 5.0

#: About the peer that says so, not about the newcomer.
_OF_ONE_PEER: Final = frozenset({Why.WRONG_CLUSTER, Why.CLOCK, Why.SELF, Why.NOT_A_NODE, Why.PROTOCOL})
#: May mend themselves within LEASE_PATIENCE_S.
_PASSING: Final = frozenset({Why.HOST_ALIVE, Why.ADDRESS_TAKEN})


async def join(
    peers: Sequence[str],
    token_text: str,
    newcomer: Newcomer,
    *,
    data_dir: Path,
    pki_dir: Path,
    clock: Callable[[], float] = time.time,
    random: random_module.Random = RANDOM,
    pace: Pace = PACE,
) -> ClusterMemory:
    """Makes this host a member by way of any of the peers (HOST:PORT); its certificates and `cluster.json` are there
    when it returns.

    Waits for peers for as long as it takes; may be cancelled and called again at any point. Raises JoinRefused, and
    TrustError or ClusterMemoryError where the directory cannot be used.
    """
    secret = _decoded(token_text)
    old = ClusterMemory.load(data_dir)
    newcomer = _as_remembered(newcomer, old, secret)
    if (refusal := refusal_of_names(newcomer)) is not None:
        raise JoinRefused(refusal.why, refusal.message)
    others = _without_self(peers, newcomer.address)
    request = _request(newcomer, secret, make_request(pki_dir))
    papers = Papers(secret.ca_pem, secret.certificate_pem, secret.key_pem)

    async def call(stub: nodes_pb2_grpc.NodeServiceAsyncStub) -> nodes_pb2.JoinResponse:
        request.now.FromNanoseconds(int(clock() * 1e9))
        return await stub.Join(request, timeout=CALL_TIMEOUT_S)

    rounds = Rounds("joining", pace, random)
    asking = _Asking()
    while True:
        asking.begin_round()
        for address in others:
            _check_expiry(secret, clock())
            answer = asking.heard(address, await ask(address, papers, call, now=clock()))
            if answer is not None:
                memory = ClusterMemory(
                    data_dir,
                    cluster_id=secret.cluster_id,
                    name=answer.name,
                    is_founder=old is not None and old.is_founder,
                    contacts=_contacts_of(answer, address, newcomer.address),
                )
                # The token's authority, which this very connection was checked by, and not the answer's.
                install(pki_dir, host_id=newcomer.host_id, ca_pem=secret.ca_pem, cert_pem=answer.certificate)
                memory.save()
                _tell(memory, newcomer, address)
                return memory
        asking.end_round()
        await rounds.wait(asking.reasons)


def _decoded(token_text: str) -> JoinSecret:
    try:
        return decode(token_text)
    except BadJoinToken as error:
        raise JoinRefused(Why.TOKEN_UNREADABLE, str(error)) from None


def _check_expiry(secret: JoinSecret, now: float) -> None:
    """A peer ends the connection of an expired token without a word."""
    if now >= secret.expires_at:
        raise JoinRefused(
            Why.TOKEN_EXPIRED,
            f"the join token expired at {_shown(secret.expires_at)}, and the clock here says {_shown(now)}: make"
            " another with node token create, on any node of the cluster (or set the clock, if it is wrong)",
        )


def _as_remembered(newcomer: Newcomer, memory: ClusterMemory | None, secret: JoinSecret) -> Newcomer:
    """A host that joins again keeps its name, unless a person gave it another."""
    if memory is None:
        return newcomer
    if memory.cluster_id != secret.cluster_id:
        raise JoinRefused(
            Why.WRONG_CLUSTER,
            f"this host belongs to cluster {memory.cluster_id} ({memory.path}), and the join token is for"
            f" {secret.cluster_id}: leave the token out to come back to the old one, or join the new one with an empty"
            " --data-dir",
        )
    return newcomer if newcomer.is_name_given else replace(newcomer, name=memory.name)


def _without_self(peers: Sequence[str], own_address: str) -> tuple[str, ...]:
    """One list of peers may serve on every machine, and then names this one too."""
    others = tuple(dict.fromkeys(peer for peer in peers if peer != own_address))
    if not others:
        raise JoinRefused(
            Why.SELF, f"--peers names nobody but this node itself ({own_address}): name nodes of the cluster"
        )
    return others


def _request(newcomer: Newcomer, secret: JoinSecret, certificate_request: bytes) -> nodes_pb2.JoinRequest:
    return nodes_pb2.JoinRequest(
        protocol=PROTOCOL,
        version=VERSION,
        token_id=secret.token_id,
        cluster_id=secret.cluster_id,
        host_id=newcomer.host_id,
        name=newcomer.name,
        is_name_given=newcomer.is_name_given,
        address=newcomer.address,
        certificate_request=certificate_request,
        host_names=newcomer.host_names,
    )


def _contacts_of(answer: nodes_pb2.JoinResponse, peer: str, own_address: str) -> Contacts:
    return Contacts(
        tuple(dict.fromkeys(answer.contacts.etcd_endpoints)),
        tuple(sorted({peer, *answer.contacts.node_addresses} - {own_address})),
    )


def _tell(memory: ClusterMemory, newcomer: Newcomer, peer: str) -> None:
    if memory.name != newcomer.name:
        log.info("the name %s is taken: this node is called %s", newcomer.name, memory.name)
    log.info("joined cluster %s as %s by way of %s", memory.cluster_id, memory.name, peer)


class _Asking:
    """What peers answered to a newcomer, and when that ends it."""

    def __init__(self) -> None:
        #: Since when a refusal is borne that may mend itself, by the loop's clock.
        self._borne_since: dict[str, float] = {}
        #: Of this round: why not, by address.
        self._refusals: dict[str, Refused] = {}
        #: Of the last round, for the log.
        self.reasons: dict[str, str] = {}

    def begin_round(self) -> None:
        self._refusals.clear()
        self.reasons.clear()

    def heard(
        self, address: str, result: Said[nodes_pb2.JoinResponse] | Refused | Silent
    ) -> nodes_pb2.JoinResponse | None:
        """The answer of a peer that admits; None: ask on. Raises JoinRefused."""
        if isinstance(result, Said):
            return result.answer
        if isinstance(result, Silent):
            self._heard_nothing(address, result)
            return None
        self.reasons[address] = result.message
        if result.why in _OF_ONE_PEER:
            self._refusals[address] = result
        elif result.why not in _PASSING or not self._is_borne(result.why, LEASE_PATIENCE_S):
            raise JoinRefused(result.why, result.message)
        return None

    def _heard_nothing(self, address: str, silent: Silent) -> None:
        self.reasons[address] = silent.reason
        if not silent.is_after_our_certificate:
            self._borne_since.pop(address, None)
        elif not self._is_borne(address, CERTIFICATE_PATIENCE_S):
            raise JoinRefused(
                Why.CERTIFICATE_REFUSED,
                f"{address} ends every connection when it sees the join token's certificate: by its clock the token has"
                " expired, or it belongs to another cluster. Make another with node token create there, and compare"
                " the clocks",
            )

    def _is_borne(self, what: str, patience_s: float) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._borne_since.setdefault(what, now) < patience_s

    def end_round(self) -> None:
        """Nobody admitted. Raises JoinRefused where somebody had a reason of its own."""
        for address, refused in self._refusals.items():
            named = refused.message if address in refused.message else f"{address}: {refused.message}"
            raise JoinRefused(refused.why, named)


def _shown(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
