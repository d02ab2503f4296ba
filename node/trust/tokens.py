"""Join tokens as the cluster knows them: until when each is good, how often, and who has used it.

The record (`/cluster/tokens/ID`) is not secret: the key is in the token alone (`node/trust/join_token.py`). Every write
compares the record's mod_revision with the one that was read, or that there is none. An unknown outcome is settled by
reading anew and sending again: a write that was applied after all is recognised by what it wrote, so that a use never
counts twice and a host that repeats its join after a lost answer does not use the token up.

A record is kept for a day after the token's end, so that a late newcomer is told "expired" and not "unknown"; older
ones are removed when a token is made.

Must not do: read the clock (Unix seconds come in); know certificates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from etcd import cluster_codec, keys
from etcd.errors import OutcomeUnknown, RecordCorrupt, StoreUnavailable
from etcd.port import Compare, Delete, Etcd, KeyValue, Put, Range, Relation, Target, Txn
from node.core.model import JoinToken

log = logging.getLogger(__name__)

KEEP_EXPIRED_S = 86_400.0
#: Each try has the deadline of one transaction (3 s); a conflict means that somebody else moved on.
TRIES = 20
TRIES_UNKNOWN = 4

_MAKE_ANOTHER = "make another with node token create, on any node of the cluster"


class TokenRefused(Exception):  # noqa: N818  (named after what is so, as in the conventions)
    """A token that is not good for what was asked; the text says what to do."""


class TokenUnknown(TokenRefused):
    """There is no such token (any more), or more than one that fits."""


class TokenExpired(TokenRefused):
    """Its time is over."""


class TokenRevoked(TokenRefused):
    """Somebody took it back."""


class TokenUsedUp(TokenRefused):
    """As many hosts as it was made for have joined with it."""


class Tokens:
    """The tokens in etcd. Every call raises the errors of the store too; repeating it is harmless."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd

    async def create(self, token: JoinToken, now: float) -> None:
        """Stores a new token, and removes those whose end is more than a day ago."""
        key = keys.token_key(token.id)
        value = cluster_codec.encode_token(token)
        old = [kv for kv, found in await self._read_all() if found.expires_at < now - KEEP_EXPIRED_S]
        txn = Txn(
            compares=(Compare(key, Target.VERSION, Relation.EQUAL, 0),),
            # Ids are random: what is there already is an earlier try of this very call.
            success=(Put(key, value), *(Delete(kv.key) for kv in old[:50])),
        )
        for last in range(TRIES_UNKNOWN, 0, -1):
            try:
                await self._etcd.txn(txn)
            except OutcomeUnknown:
                if last == 1:
                    raise
            else:
                return

    async def list_all(self) -> list[JoinToken]:
        """All that are known, the newest last."""
        return sorted((token for _, token in await self._read_all()), key=lambda token: (token.created_at, token.id))

    async def revoke(self, id_prefix: str) -> JoinToken:
        """Takes a token back, named by its id or a unique prefix; also again. Raises TokenUnknown."""
        found = [token for token in await self.list_all() if token.id.startswith(id_prefix.lower())]
        if not id_prefix or not found:
            raise TokenUnknown(f"no join token {id_prefix!r} is known: node token list shows them")
        if len(found) > 1:
            raise TokenUnknown(f"{id_prefix} is ambiguous: it begins the ids of {len(found)} tokens; give more digits")
        return await self._change(found[0].id, lambda token: replace(token, revoked=True))

    async def use(self, token_id: str, host_id: str, now: float) -> JoinToken:
        """Counts a join of this host; of the same host once.

        Raises TokenUnknown, TokenRevoked, TokenExpired, TokenUsedUp; then nothing was counted.
        """

        def used(token: JoinToken) -> JoinToken:
            if token.revoked:
                raise TokenRevoked(f"join token {token.id} was revoked: {_MAKE_ANOTHER}")
            if now >= token.expires_at:
                raise TokenExpired(f"join token {token.id} has expired: {_MAKE_ANOTHER}")
            if host_id in token.used_by:
                return token
            if token.uses and len(token.used_by) >= token.uses:
                raise TokenUsedUp(
                    f"join token {token.id} was good for {token.uses} hosts, which joined: {_MAKE_ANOTHER}"
                )
            return replace(token, used_by=(*token.used_by, host_id))

        return await self._change(token_id, used)

    async def _change(self, token_id: str, change: Callable[[JoinToken], JoinToken]) -> JoinToken:
        """Replaces the record by `change` of it, under its guard; nothing is written where nothing changes."""
        if not keys.is_task_id(token_id):
            raise TokenUnknown(f"{token_id!r} is no id of a join token: {_MAKE_ANOTHER}")
        key = keys.token_key(token_id)
        unknown = 0
        for _ in range(TRIES):
            found = await self._etcd.range(Range(key))
            if not found.kvs:
                raise TokenUnknown(f"join token {token_id} is not known here (its end was days ago?): {_MAKE_ANOTHER}")
            before = cluster_codec.decode_token(key, found.kvs[0].value)
            after = change(before)
            if after == before:
                return before
            guard = Compare(key, Target.MOD, Relation.EQUAL, found.kvs[0].mod_revision)
            try:
                result = await self._etcd.txn(Txn((guard,), (Put(key, cluster_codec.encode_token(after)),)))
            except OutcomeUnknown:
                unknown += 1
                if unknown == TRIES_UNKNOWN:
                    raise
            else:
                if result.succeeded:
                    return after
        raise StoreUnavailable(f"join token {token_id} is written by too many at once")

    async def _read_all(self) -> list[tuple[KeyValue, JoinToken]]:
        wanted = keys.all_tokens()
        result = await self._etcd.range(Range(wanted.key, wanted.range_end))
        found: list[tuple[KeyValue, JoinToken]] = []
        for kv in result.kvs:
            try:
                found.append((kv, cluster_codec.decode_token(kv.key, kv.value)))
            except RecordCorrupt as error:
                # Somebody else's: it must not keep the others from being listed and made.
                log.warning("left out of the join tokens: %s", error)
        return found
