"""Getting a certificate signed: here, where the authority's key is, else by another node that has it.

The authority's key lies on the voters alone. A node without it asks the others, one after the other, until one signs;
whoever has no key answers FAILED_PRECONDITION. Which nodes there are, and how they are reached, is handed in.

Must not do: decide who may have which certificate; log or keep what it signs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from node.trust.authority import LEAF_LIFE_S, NotSignable, sign_request
from node.trust.material import load_authority
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc

#: One node's answer: a signature takes a millisecond, the rest is the way there.
ASK_TIMEOUT_S = 3.0


class Peers(Protocol):
    """The ways to other nodes (`node.peer_channels.PeerChannels`)."""

    def nodes(self, address: str) -> nodes_pb2_grpc.NodeServiceAsyncStub: ...


class NobodySigns(Exception):  # noqa: N818  (named after what is so, as in the conventions)
    """No node that has the authority's key could be reached, now; the text tells what each one said."""


class Signer:
    """Signs here or elsewhere; asks again at each call where the key is, since it may be handed on at any time."""

    def __init__(
        self,
        pki_dir: Path,
        peers: Peers,
        addresses: Callable[[], Sequence[str]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """addresses: HOST:PORT of the nodes to ask, the likeliest (voters) first; this node need not be left out."""
        self._pki_dir = pki_dir
        self._peers = peers
        self._addresses = addresses
        self._clock = clock

    async def sign(
        self,
        request_pem: bytes,
        *,
        role: str,
        common_name: str,
        host_names: Sequence[str] = (),
        life_s: float = LEAF_LIFE_S,
    ) -> bytes:
        """A certificate (PEM) for the key of this request, as `authority.sign_request`.

        Raises NobodySigns (try again later), NotSignable for what no node would sign, and TrustError for files of this
        node that cannot be used.
        """
        signed = self.sign_here(request_pem, role=role, common_name=common_name, host_names=host_names, life_s=life_s)
        if signed is not None:
            return signed
        request = nodes_pb2.SignRequest(
            certificate_request=request_pem, role=role, common_name=common_name, host_names=host_names
        )
        request.life.FromNanoseconds(int(life_s * 1e9))
        return await self._ask(request)

    def sign_here(
        self, request_pem: bytes, *, role: str, common_name: str, host_names: Sequence[str], life_s: float
    ) -> bytes | None:
        """As `sign`, with the key on this node's disk; None where it is not. Raises TrustError."""
        authority = load_authority(self._pki_dir)
        if authority is None:
            return None
        return sign_request(
            authority,
            request_pem,
            role=role,
            common_name=common_name,
            host_names=host_names,
            life_s=life_s,
            now=self._clock(),
        )

    async def _ask(self, request: nodes_pb2.SignRequest) -> bytes:
        said: list[str] = []
        for address in dict.fromkeys(self._addresses()):
            try:
                response = await self._peers.nodes(address).Sign(request, timeout=ASK_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise NotSignable(f"{address} does not sign: {error.details()}") from None
                said.append(f"{address}: {error.details() or error.code().name}")
            else:
                return response.certificate
        heard = "; ".join(said) or "no other node is known"
        raise NobodySigns(
            f"the authority's key is not on this node, and no node that has it (a voter) could be asked: {heard}"
        )
