"""How a host that is to vote in etcd gets the authority's key: from a voter, over mutual TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc

from node.cluster.membership import MembershipError
from node.peer_channels import PeerChannels
from node.trust.authority import TrustError
from node.trust.material import Trust, install_authority_key
from pilfer.v1 import nodes_pb2

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0


async def fetch_authority(trust: Trust, peers: PeerChannels, addresses: Callable[[], Sequence[str]]) -> None:
    """Returns when the key is on this host's disk. addresses: of the nodes to ask, voters first.

    Raises MembershipError when nobody gives it now; to be asked again later.
    """
    if trust.ca_key.exists():
        return
    reasons = []
    for address in addresses():
        try:
            answer = await peers.nodes(address).ShareAuthority(
                nodes_pb2.ShareAuthorityRequest(), timeout=CALL_TIMEOUT_S
            )
            await asyncio.to_thread(install_authority_key, trust.pki_dir, answer.ca_key)
        except grpc.aio.AioRpcError as error:
            reasons.append(f"{address}: {error.details()}")
        except (TrustError, OSError) as error:
            reasons.append(f"{address}: {error}")
        else:
            log.info("the authority's key came from %s", address)
            return
    raise MembershipError(f"nobody gives the authority's key now ({'; '.join(reasons) or 'no other node is known'})")
