"""NodeService: who may come in. Join tokens, invitations, and what nodes sign and hand on for one another.

Keys of tokens and invitations are made here and leave with the answer alone: they are neither kept nor logged. Who may
make these calls at all stands in `node/api/callers.py`. What is signed is told in one log line each, with its caller.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from etcd.codec import set_time
from node.api.callers import caller_of, origin_of
from node.api.errors import ApiError, answers, invalid
from node.core.model import JoinToken
from node.core.validate import Violation
from node.trust.authority import (
    LEAF_LIFE_S,
    NAME_MAX,
    ROLE_CLIENT,
    ROLE_JOIN,
    ROLE_NODE,
    NotSignable,
    TrustError,
    key_pem,
    new_key,
    request_of,
)
from node.trust.join_token import encode, join_secret
from node.trust.material import Trust, host_of_admin, load_authority
from node.trust.signer import NobodySigns, Signer
from node.trust.tokens import TokenRefused, Tokens
from pilfer.v1 import nodes_pb2

log = logging.getLogger(__name__)

TOKEN_TTL_S: Final = 3600.0
#: A token is a secret in files and mails: it does not live for long.
TOKEN_TTL_MAX_S: Final = 30 * 86_400.0
TOKEN_USES_MAX: Final = 10_000
#: The certificate in a token lasts a little longer than the token, so that a late newcomer hears from the cluster that
#: it has expired; a handshake with a certificate that is over ends without a word.
TOKEN_GRACE_S: Final = 3600.0
INVITATION_TTL_S: Final = 30 * 86_400.0
INVITATION_TTL_MAX_S: Final = 366 * 86_400.0
TTL_MIN_S: Final = 1.0


class TrustCalls:
    """The calls about tokens, invitations and signatures."""

    def __init__(
        self,
        tokens: Tokens,
        signer: Signer,
        trust: Trust,
        *,
        cluster_id: str,
        addresses: Callable[[], Sequence[str]],
        may_have_authority: Callable[[str], Awaitable[bool]],
        is_removed: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """addresses: HOST:PORT of the nodes that serve TCP, for people to use. may_have_authority: whether the host
        with this id is, or is about to be, a voter. is_removed: whether it was removed from the cluster."""
        self._tokens = tokens
        self._signer = signer
        self._trust = trust
        self._cluster_id = cluster_id
        self._addresses = addresses
        self._may_have_authority = may_have_authority
        self._is_removed = is_removed
        self._clock = clock

    # --- join tokens

    @answers
    async def CreateToken(  # noqa: N802  (gRPC's name)
        self, request: nodes_pb2.CreateTokenRequest, context: Any
    ) -> nodes_pb2.CreateTokenResponse:
        ttl_s = _ttl_s(request, TOKEN_TTL_S, TOKEN_TTL_MAX_S)
        if not 0 <= request.uses <= TOKEN_USES_MAX:
            raise invalid([Violation("uses", f"must be 0 (any number) to {TOKEN_USES_MAX}")])
        now = self._clock()
        token = JoinToken(id=str(uuid.uuid4()), created_at=now, expires_at=now + ttl_s, uses=request.uses)
        key = new_key()
        certificate = await self._sign(request_of(key), ROLE_JOIN, token.id, ttl_s + TOKEN_GRACE_S)
        # Signed first: a token that stands in the list has been given to somebody.
        await self._tokens.create(token, now)
        secret = join_secret(
            cluster_id=self._cluster_id,
            token_id=token.id,
            ca_pem=self._trust.ca_cert.read_bytes(),
            certificate_pem=certificate,
            key=key,
            expires_at=token.expires_at,
        )
        log.info("token=%s made for %s, %gs, uses %d", token.id, origin_of(context), ttl_s, token.uses)
        return nodes_pb2.CreateTokenResponse(token=encode(secret), view=_view(token), addresses=self._addresses())

    @answers
    async def ListTokens(  # noqa: N802
        self, _request: nodes_pb2.ListTokensRequest, _context: Any
    ) -> nodes_pb2.ListTokensResponse:
        return nodes_pb2.ListTokensResponse(tokens=map(_view, await self._tokens.list_all()))

    @answers
    async def RevokeToken(  # noqa: N802
        self, request: nodes_pb2.RevokeTokenRequest, context: Any
    ) -> nodes_pb2.RevokeTokenResponse:
        if not request.id:
            raise invalid([Violation("id", "is empty: the id of a token, or the first digits of one")])
        try:
            token = await self._tokens.revoke(request.id)
        except TokenRefused as error:
            raise ApiError(grpc.StatusCode.NOT_FOUND, str(error)) from error
        log.info("token=%s revoked by %s", token.id, origin_of(context))
        return nodes_pb2.RevokeTokenResponse(token=_view(token))

    # --- people

    @answers
    async def Invite(  # noqa: N802
        self, request: nodes_pb2.InviteRequest, context: Any
    ) -> nodes_pb2.InviteResponse:
        ttl_s = _ttl_s(request, INVITATION_TTL_S, INVITATION_TTL_MAX_S)
        if wrong := _wrong_with_name(request.name):
            raise invalid([Violation("name", wrong)])
        key = new_key()
        certificate = await self._sign(request_of(key), ROLE_CLIENT, request.name, ttl_s)
        log.info("name=%s invited by %s for %gs", request.name, origin_of(context), ttl_s)
        return nodes_pb2.InviteResponse(
            ca_certificate=self._trust.ca_cert.read_bytes(),
            certificate=certificate,
            key=key_pem(key),
            addresses=self._addresses(),
        )

    # --- between nodes

    @answers
    async def Sign(  # noqa: N802
        self, request: nodes_pb2.SignRequest, context: Any
    ) -> nodes_pb2.SignResponse:
        """Signs with the key on this node's disk. A node may have anything signed but for a host that was removed."""
        host_id = request.common_name if request.role == ROLE_NODE else host_of_admin(request.common_name)
        if host_id and self._is_removed(host_id):
            raise ApiError(grpc.StatusCode.PERMISSION_DENIED, f"host {host_id} was removed: nothing is signed for it")
        life_s = request.life.ToNanoseconds() / 1e9
        if not 0 < life_s <= INVITATION_TTL_MAX_S:
            raise invalid([Violation("life", f"must be more than 0 and at most {INVITATION_TTL_MAX_S:g} s")])
        try:
            certificate = self._signer.sign_here(
                request.certificate_request,
                role=request.role,
                common_name=request.common_name,
                host_names=request.host_names,
                life_s=min(life_s, LEAF_LIFE_S) if request.role == ROLE_NODE else life_s,
            )
        except NotSignable as error:
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except TrustError as error:
            raise _broken(error) from error
        if certificate is None:
            raise _no_key_here()
        log.info("signed for %s %s, asked by %s", request.role, request.common_name, caller_of(context))
        return nodes_pb2.SignResponse(certificate=certificate)

    @answers
    async def ShareAuthority(  # noqa: N802
        self, _request: nodes_pb2.ShareAuthorityRequest, context: Any
    ) -> nodes_pb2.ShareAuthorityResponse:
        # Never on behalf of somebody else: the key goes to the host at the other end of this very connection.
        caller = caller_of(context)
        if caller.role != ROLE_NODE or not await self._may_have_authority(caller.host_id):
            raise ApiError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the authority's key is for voters, and {caller} is none and is not about to become one",
            )
        try:
            authority = load_authority(self._trust.pki_dir)
        except TrustError as error:
            raise _broken(error) from error
        if authority is None:
            raise _no_key_here()
        log.info("the authority's key goes to host=%s, which votes", caller.host_id)
        return nodes_pb2.ShareAuthorityResponse(ca_key=key_pem(authority.key))

    async def _sign(self, request_pem: bytes, role: str, name: str, life_s: float) -> bytes:
        try:
            return await self._signer.sign(request_pem, role=role, common_name=name, life_s=life_s)
        except NobodySigns as error:
            raise ApiError(grpc.StatusCode.UNAVAILABLE, f"{error}. Try again") from error
        except NotSignable as error:
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except TrustError as error:
            raise _broken(error) from error


def _no_key_here() -> ApiError:
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, "the authority's key is not on this node: ask a voter")


def _broken(error: TrustError) -> ApiError:
    """The files of this node cannot be used; another voter may sign."""
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, str(error))


def _ttl_s(
    request: nodes_pb2.CreateTokenRequest | nodes_pb2.InviteRequest, default_s: float, at_most_s: float
) -> float:
    """Raises ApiError for a time that is none or too long."""
    if not request.HasField("ttl"):
        return default_s
    ttl: Duration = request.ttl
    ttl_s = ttl.seconds + ttl.nanos / 1e9
    if not TTL_MIN_S <= ttl_s <= at_most_s:
        raise invalid([Violation("ttl", f"must be {TTL_MIN_S:g} s to {at_most_s / 86_400:g} days")])
    return ttl_s


def _wrong_with_name(name: str) -> str | None:
    """Why a certificate for a person cannot have this name."""
    if not name or name != name.strip() or not name.isprintable():
        return "must be a name of printable characters, such as alice or build-server"
    if len(name) > NAME_MAX:
        return f"must have at most {NAME_MAX} characters, and has {len(name)}"
    if host_of_admin(name):
        return "must not begin with admin@: that is the certificate a node keeps for its own administrator"
    return None


def _view(token: JoinToken) -> nodes_pb2.TokenView:
    view = nodes_pb2.TokenView(id=token.id, uses=token.uses, used=len(token.used_by), revoked=token.revoked)
    set_time(view.created_at, token.created_at)
    set_time(view.expires_at, token.expires_at)
    return view
