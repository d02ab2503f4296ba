"""Whether this host's node lives already, elsewhere: asked before etcd's data are started that may be a copy.

A copy of a data directory holds the original's member of etcd. The cluster refuses its node by the guard of the host's
record (`node/cluster/host_record.py`), but that is read through etcd: until then the copy's member would speak to the
others in the original's name, with promises (votes, entries acknowledged) that the original does not know of.

A directory may be a copy unless its last run was here: in this very directory, on this machine, since its boot
(`DataDir.wrote`); the lock of the host id keeps out a second one on this machine (`node/host_lock.py`). After a reboot
or a move the others are asked once:

    a node of this host lives    its lease may still run after a quick reboot: asked again, and refused in the end
    none does, as others say     the start goes on
    who has no lease             does not say: without a quorum no node's end is written, and who waited for it might be
                                 the one that the quorum wants for
    nobody answers               the start goes on: the whole cluster may be down, and would never come up. What is left
                                 open is a copy that is started cut off from all other nodes

Must not do: start anything, or ask who has nothing to lose (a plain client of etcd is refused by the guard in time).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from node.core.newcomer import Why
from node.joining.cluster_memory import ClusterMemory
from node.joining.coming_back import ASKED_PER_ROUND, CONTACTS_TIMEOUT_S
from node.joining.handshake import Papers
from node.joining.peer_answers import JoinRefused, Refused, Said, Silent, ask
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc
from pilfer.version import PROTOCOL

AGAIN_S: Final = 1.0


async def wait_alone(
    memory: ClusterMemory,
    peers: Sequence[str],
    papers: Callable[[], Papers],
    *,
    host_id: str,
    own_address: str,
    patience_s: float,
    clock: Callable[[], float] = time.time,
) -> None:
    """Returns when no node that answers knows of a living node of this host. Raises JoinRefused where one lives on.

    peers: HOST:PORT of nodes, asked besides those that are remembered. papers: this node's own. patience_s: for its own
    last lease to run out, after a quick reboot.
    """
    known = dict.fromkeys((*peers, *memory.node_addresses[:ASKED_PER_ROUND]))
    asked = [address for address in known if address != own_address]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while (where := await _find_living(asked, memory.cluster_id, papers(), host_id=host_id, now=clock())) is not None:
        if loop.time() >= deadline:
            raise JoinRefused(
                Why.HOST_ALIVE,
                f"another living node has this host's id ({host_id}; {where}): was the data directory copied? Two hosts"
                " must not share one: give this one an empty --data-dir and join with a token. If it is this host's own"
                " last run, start again when its lease has run out",
            )
        await asyncio.sleep(AGAIN_S)


async def _find_living(
    asked: Sequence[str], cluster_id: str, papers: Papers, *, host_id: str, now: float
) -> str | None:
    """Which node of this host lives, in words; None: none that anybody who answers knows of."""
    request = nodes_pb2.ContactsRequest(protocol=PROTOCOL, host_id=host_id)

    async def call(stub: nodes_pb2_grpc.NodeServiceAsyncStub) -> nodes_pb2.ContactsResponse:
        return await stub.Contacts(request, timeout=CONTACTS_TIMEOUT_S)

    answers = await asyncio.gather(*(ask(address, papers, call, now=now) for address in asked))
    for address, result in zip(asked, answers, strict=True):
        match result:
            case Refused(why=Why.SELF):
                return f"it answers at {address}"
            case Said(answer=answer) if answer.contacts.cluster_id == cluster_id and answer.living_node_id:
                return f"{answer.living_node_id}, as the node at {address} says"
            case Said() | Refused() | Silent():
                continue
    return None
