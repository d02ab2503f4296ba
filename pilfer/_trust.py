"""The client's methods about who may come in: join tokens and invitations. A part of `AsyncClient`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from pilfer import _transport
from pilfer._nodes import NodeMethods
from pilfer.types import Invitation, NewToken, TokenView
from pilfer.v1 import nodes_pb2

TokenViews: TypeAlias = list[TokenView]


class TrustMethods(NodeMethods):
    """Tokens and invitations."""

    async def create_token(self, *, ttl_s: float | None = None, uses: int = 0) -> NewToken:
        """Makes a join token: whoever has it may bring a machine into the cluster, until it expires (default: in one
        hour) or `uses` machines have joined (0: any number). It is told this once; the cluster does not keep it.

        Raises InvalidRequest. When no node answers at first, tokens that nobody has seen may be left behind.
        """
        request = nodes_pb2.CreateTokenRequest(uses=uses)
        if ttl_s is not None:
            request.ttl.FromNanoseconds(round(ttl_s * 1e9))
        response = await self._call(_transport.CREATE_TOKEN, request, may_be_long=True)
        return NewToken(response.token, _view(response.view), tuple(response.addresses))

    async def list_tokens(self) -> TokenViews:
        """The join tokens that are known, the oldest first; those that expired a day ago are forgotten."""
        response = await self._call(_transport.LIST_TOKENS, nodes_pb2.ListTokensRequest())
        return [_view(message) for message in response.tokens]

    async def revoke_token(self, token_id: str) -> TokenView:
        """Nobody joins with this token any more; who has joined stays. A unique prefix of its id will do. Repeating it
        is harmless. Raises NotFound, also for an ambiguous prefix."""
        return _view((await self._call(_transport.REVOKE_TOKEN, nodes_pb2.RevokeTokenRequest(id=token_id))).token)

    async def invite(self, name: str, *, ttl_s: float | None = None) -> Invitation:
        """Makes a certificate and key with which a client elsewhere may talk to the cluster; default for 30 days.

        name: for people, who it is for. Raises InvalidRequest.
        """
        request = nodes_pb2.InviteRequest(name=name)
        if ttl_s is not None:
            request.ttl.FromNanoseconds(round(ttl_s * 1e9))
        response = await self._call(_transport.INVITE, request, may_be_long=True)
        return Invitation(
            response.ca_certificate, response.certificate, response.key, addresses=tuple(response.addresses)
        )


def _view(message: nodes_pb2.TokenView) -> TokenView:
    return TokenView(
        id=message.id,
        created_at=_time(message.created_at),
        expires_at=_time(message.expires_at),
        uses=message.uses,
        used=message.used,
        revoked=message.revoked,
    )


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
