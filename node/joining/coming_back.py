"""How a node that was away finds its cluster again.

Nodes answer Contacts from memory, so that a cluster that was down as a whole finds itself again: all that is remembered
and all `--peers` are asked, and what the first round of answers says is put together. A voter's address that is no
longer good costs its clients a moment; one that is missing may cost everything.

Must not do: touch etcd, or write what was found (`ClusterMemory.update`).
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NoReturn

from node.core.newcomer import Why
from node.joining.cluster_memory import ClusterMemory, Contacts
from node.joining.handshake import Papers
from node.joining.peer_answers import JoinRefused, Refused, Silent, ask
from node.joining.rounds import PACE, RANDOM, Pace, Rounds
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc
from pilfer.version import PROTOCOL

log = logging.getLogger(__name__)

#: Contacts costs a peer nothing; one that does not answer by then is no help.
CONTACTS_TIMEOUT_S: Final = 3.0
#: Remembered nodes asked in one round, besides all `--peers`: a cluster may have a thousand, of which a few suffice.
ASKED_PER_ROUND: Final = 32


#: Between an answer and the next question, while etcd has no quorum.
SEEK_EVERY_S: Final = 2.0
#: How often a node that runs looks whether it has lost its cluster.
LOST_LOOK_S: Final = 5.0
#: How long others are asked until it is looked again whether the cluster is still lost.
SEEK_AT_ONCE_S: Final = 15.0
#: What no other node will say otherwise.
_OF_THIS_HOST: Final = (Why.REMOVED, Why.CERTIFICATE_REFUSED)


async def seek(find: Callable[[], Awaitable[Contacts]], use: Callable[[Contacts], None]) -> NoReturn:
    """Hands on what `find` gives, again and again until it is canceled: who answers first may have been away as well,
    and know no more than this host. Raises what `find` raises."""
    while True:
        use(await find())
        await asyncio.sleep(SEEK_EVERY_S)


async def seek_when_lost(
    is_lost: Callable[[], bool], find: Callable[[], Awaitable[Contacts]], use: Callable[[Contacts], None]
) -> NoReturn:
    """For as long as the node runs: all voters may be others by the time that it is reached again after a cut. A start
    has nothing ahead of it but this; a node that runs does not end because of what others say, but for its removal.

    Raises JoinRefused: this host was removed.
    """
    while True:
        await asyncio.sleep(LOST_LOOK_S)
        if not is_lost():
            continue
        try:
            async with asyncio.timeout(SEEK_AT_ONCE_S):
                use(await find())
        except TimeoutError:
            continue  # nobody answers, which was told
        except JoinRefused as error:
            if error.why in _OF_THIS_HOST:
                raise
            log.warning("where the cluster is now could not be asked: %s", error)
        except OSError as error:  # certificates that cannot be read
            log.warning("where the cluster is now could not be asked: %s", error)


async def find_contacts(
    memory: ClusterMemory,
    peers: Sequence[str],
    papers: Callable[[], Papers],
    *,
    host_id: str,
    own_address: str,
    clock: Callable[[], float] = time.time,
    random: random_module.Random = RANDOM,
    pace: Pace = PACE,
) -> Contacts:
    """Where the cluster is now, as other nodes tell it; asks until one answers. What is remembered already, where
    there is nobody to ask. `papers`: this node's own, read anew for each round.

    Raises JoinRefused: this host was removed, or a peer that was named belongs to another cluster.
    """
    named = tuple(dict.fromkeys(peer for peer in peers if peer != own_address))
    known = [address for address in memory.node_addresses if address not in (own_address, *named)]
    if not named and not known:
        return memory.contacts
    request = nodes_pb2.ContactsRequest(protocol=PROTOCOL, host_id=host_id)

    async def call(stub: nodes_pb2_grpc.NodeServiceAsyncStub) -> nodes_pb2.ContactsResponse:
        return await stub.Contacts(request, timeout=CONTACTS_TIMEOUT_S)

    rounds = Rounds("coming back", pace, random)
    while True:
        asked = (*named, *random.sample(known, min(len(known), ASKED_PER_ROUND)))
        own = papers()
        answers = await asyncio.gather(*(ask(address, own, call, now=clock()) for address in asked))
        results = dict(zip(asked, answers, strict=True))
        reasons: dict[str, str] = {}
        found: list[Contacts] = []
        for address, result in results.items():
            if isinstance(result, Silent):
                reasons[address] = result.reason
            elif isinstance(result, Refused):
                _check_refusal(address, result, is_named=address in named, memory=memory)
                reasons[address] = result.message
            elif (contacts := result.answer.contacts).cluster_id != memory.cluster_id:
                other = Refused(Why.WRONG_CLUSTER, f"{address} belongs to cluster {contacts.cluster_id}")
                _check_refusal(address, other, is_named=address in named, memory=memory)
                reasons[address] = f"belongs to cluster {contacts.cluster_id}"
            else:
                found.append(Contacts(tuple(contacts.etcd_endpoints), (address, *contacts.node_addresses)))
        if found:
            return merged(found, without=own_address)
        await rounds.wait(reasons)


def _of_another_cluster(refused: Refused, memory: ClusterMemory) -> str:
    """The usual reason is a first start without --peers, by mistake."""
    whose = ", which it founded at a start without --peers" if memory.is_founder else ""
    return (
        f"{refused.message}. This host belongs to cluster {memory.cluster_id} ({memory.path}){whose}: leave --peers"
        " out to come back to it; to join the other one, give an empty --data-dir and a join token"
    )


def _check_refusal(address: str, refused: Refused, *, is_named: bool, memory: ClusterMemory) -> None:
    """Raises JoinRefused for what no other node will answer otherwise. An address that is only remembered may belong
    to somebody else by now."""
    if refused.why in _OF_THIS_HOST:
        raise JoinRefused(refused.why, refused.message)
    if is_named and refused.why is Why.WRONG_CLUSTER:
        raise JoinRefused(refused.why, _of_another_cluster(refused, memory))
    log.debug("%s refuses: %s", address, refused.message)


def merged(found: Iterable[Contacts], *, without: str = "") -> Contacts:
    """What several nodes say, put together: all addresses, those that most of them name first. A node that was away
    itself names old ones."""
    found = list(found)

    def most_named(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
        named = Counter(address for addresses in lists for address in dict.fromkeys(addresses))
        # sorted is stable: among equals, the order in which they were named.
        return tuple(address for address, _ in sorted(named.items(), key=lambda item: -item[1]) if address != without)

    return Contacts(
        most_named(contacts.etcd_endpoints for contacts in found),
        most_named(contacts.node_addresses for contacts in found),
    )
