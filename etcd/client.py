"""The client of etcd: fills the port `etcd.port.Etcd` over etcd's public gRPC contract.

Thin on purpose: one coroutine per call, errors translated, endpoints rotated, deadlines on everything. It holds no
state but its connections, decides nothing about tasks, and never sends a write twice (whether that is right depends
on the write's guards: see `etcd/batcher.py`). Reads, which may be repeated freely, go to the next member at once when
one is down.

Lives on the loop on which it is first used. Another thread takes a client of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import grpc

from etcd import convert
from etcd import rpc_pb2 as pb
from etcd.endpoints import RETURN_AFTER_S, AddressSource, ClientTls, Endpoint, Endpoints
from etcd.errors import (
    Compacted,
    LeaseNotFound,
    MemberNotFound,
    MemberNotLearner,
    MembershipRefused,
    OutcomeUnknown,
    StoreUnavailable,
)
from etcd.lease import GrpcKeepAlive
from etcd.port import (
    Alarm,
    KeepAliveStream,
    KeyRange,
    Lease,
    Member,
    MemberStatus,
    Op,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    WatchBatch,
)
from etcd.translate import NOT_TAKEN, ROTATES, error_of, is_canceled_from_outside
from etcd.watch_stream import ResumingWatch

_Answer = TypeVar("_Answer")

#: Of a SHA-256.
_DIGEST_BYTES = 32
#: For what a member lacks of what was acknowledged, before a snapshot of it.
_CATCH_UP_S = 30.0

_ALARM_NAME = {pb.NOSPACE: "NOSPACE", pb.CORRUPT: "CORRUPT"}
_ALARM_TYPE = {name: number for number, name in _ALARM_NAME.items()}


class EtcdClient:
    """A client of one etcd cluster; see `etcd.port.Etcd` for the calls. Closed by `close()` or `async with`."""

    def __init__(
        self,
        endpoints: Sequence[str] | AddressSource,
        tls: ClientTls | None,
        *,
        rng: random.Random | None = None,
        return_after_s: float = RETURN_AFTER_S,
    ) -> None:
        """endpoints: HOST:PORT of each member, the preferred one first; or a callable that gives them, asked at each
        use. rng: jitter of the retries of watches. return_after_s: away from the preferred member, how often it is
        asked whether it is back."""
        self._endpoints = Endpoints(endpoints, tls, return_after_s=return_after_s)
        self._rng = rng or random.Random()  # noqa: S311  (jitter, not secrets)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all connections; open calls and watches raise StoreUnavailable (a write: OutcomeUnknown)."""
        await self._endpoints.close()

    def use_next_endpoint(self) -> None:
        """Prefers another member from now on, where there is one."""
        self._endpoints.rotate()

    # Keys

    async def range(self, op: Range, *, timeout_s: float = 3.0) -> RangeResult:
        request = convert.range_request(op)
        answer = await self._read(lambda at, timeout: at.kv.Range(request, timeout=timeout), timeout_s)
        return await convert.range_result(answer)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        request = convert.txn_request(txn)
        if _only_reads(txn):
            answer = await self._read(lambda at, timeout: at.kv.Txn(request, timeout=timeout), timeout_s)
        else:
            answer = await self._write(lambda at: at.kv.Txn(request, timeout=timeout_s))
        return convert.txn_result(answer)

    async def compact(self, revision: int, *, physical: bool = False, timeout_s: float = 30.0) -> None:
        request = pb.CompactionRequest(revision=revision, physical=physical)
        try:
            await self._write(lambda at: at.kv.Compact(request, timeout=timeout_s))
        except Compacted:
            return

    def watch(
        self, ranges: Sequence[KeyRange], *, start_revision: int | None = None, timeout_s: float = 10.0
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return ResumingWatch(self._endpoints, ranges, start_revision, timeout_s, self._rng)

    # Leases

    async def lease_grant(self, ttl_s: float, *, timeout_s: float = 3.0) -> Lease:
        request = pb.LeaseGrantRequest(TTL=max(1, round(ttl_s)))
        answer = await self._write(lambda at: at.lease.LeaseGrant(request, timeout=timeout_s))
        return Lease(answer.ID, float(answer.TTL))

    async def lease_revoke(self, lease_id: int, *, timeout_s: float = 3.0) -> None:
        request = pb.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._write(lambda at: at.lease.LeaseRevoke(request, timeout=timeout_s))
        except LeaseNotFound:
            return

    def keep_alive(self, lease_id: int) -> AbstractAsyncContextManager[KeepAliveStream]:
        return GrpcKeepAlive(self._endpoints, lease_id)

    # Members and upkeep

    async def status(self, *, timeout_s: float = 3.0) -> MemberStatus:
        answer = await self._read(
            lambda at, timeout: at.maintenance.Status(pb.StatusRequest(), timeout=timeout), timeout_s
        )
        return MemberStatus(
            version=answer.version,
            db_size_bytes=answer.dbSize,
            db_in_use_bytes=answer.dbSizeInUse,
            leader_id=answer.leader,
            member_id=answer.header.member_id,
            revision=answer.header.revision,
            is_learner=answer.isLearner,
        )

    async def defragment(self, *, timeout_s: float = 60.0) -> None:
        await self._write(lambda at: at.maintenance.Defragment(pb.DefragmentRequest(), timeout=timeout_s))

    async def alarms(self, *, timeout_s: float = 3.0) -> tuple[Alarm, ...]:
        request = pb.AlarmRequest(action=pb.AlarmRequest.GET)
        answer = await self._read(lambda at, timeout: at.maintenance.Alarm(request, timeout=timeout), timeout_s)
        return tuple(Alarm(a.memberID, _ALARM_NAME.get(a.alarm, str(a.alarm))) for a in answer.alarms)

    async def disarm(self, alarm: Alarm, *, timeout_s: float = 3.0) -> None:
        request = pb.AlarmRequest(
            action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.member_id, alarm=_ALARM_TYPE[alarm.kind]
        )
        await self._write(lambda at: at.maintenance.Alarm(request, timeout=timeout_s))

    async def members(self, *, timeout_s: float = 3.0, linearizable: bool = True) -> tuple[Member, ...]:
        request = pb.MemberListRequest(linearizable=linearizable)
        answer = await self._read(lambda at, timeout: at.cluster.MemberList(request, timeout=timeout), timeout_s)
        return tuple(convert.member(m) for m in answer.members)

    async def add_learner(self, peer_urls: Sequence[str], *, timeout_s: float = 5.0) -> Member:
        request = pb.MemberAddRequest(peerURLs=peer_urls, isLearner=True)
        answer = await self._write(lambda at: at.cluster.MemberAdd(request, timeout=timeout_s))
        return convert.member(answer.member)

    async def promote(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        request = pb.MemberPromoteRequest(ID=member_id)
        with contextlib.suppress(MemberNotLearner):
            await self._write(lambda at: at.cluster.MemberPromote(request, timeout=timeout_s))

    async def remove_member(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        request = pb.MemberRemoveRequest(ID=member_id)
        with contextlib.suppress(MemberNotFound):
            await self._write(lambda at: at.cluster.MemberRemove(request, timeout=timeout_s))

    async def update_member(self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float = 5.0) -> None:
        """Tells the cluster a member's new peer addresses. Not for learners: etcd 3.5.30 forgets then that they are
        learners (etcd issue 21694)."""
        request = pb.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
        await self._write(lambda at: at.cluster.MemberUpdate(request, timeout=timeout_s))

    async def move_leader(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        request = pb.MoveLeaderRequest(targetID=member_id)
        await self._write(lambda at: at.maintenance.MoveLeader(request, timeout=timeout_s))

    async def snapshot(self, file: Path, *, timeout_s: float = 600.0) -> int:
        if self._endpoints.is_closed:
            raise StoreUnavailable("the client is closed")
        endpoint = self._endpoints.current()
        new = file.with_name(file.name + ".new")
        try:
            # etcd's snapshot is of what this member has applied, which may be less than what was acknowledged, and of
            # any age where it has no leader. A linearizable read at the same member waits for what it lacks, or fails.
            await endpoint.kv.Range(pb.RangeRequest(key=b"\0", count_only=True), timeout=min(timeout_s, _CATCH_UP_S))
            size = await _save(endpoint.maintenance.Snapshot(pb.SnapshotRequest(), timeout=timeout_s), new)
            await asyncio.to_thread(new.replace, file)
        except grpc.aio.AioRpcError as error:
            if error.code() in ROTATES:
                self._endpoints.rotate(endpoint)
            raise error_of(error, endpoint.address, may_be_applied=False) from error
        except asyncio.CancelledError:
            if is_canceled_from_outside():
                raise
            raise StoreUnavailable("the client was closed while the snapshot was under way") from None
        finally:
            new.unlink(missing_ok=True)
        return size

    # Calling

    async def _write(self, call: Callable[[Endpoint], Awaitable[_Answer]]) -> _Answer:
        """Sends once."""
        if self._endpoints.is_closed:
            raise StoreUnavailable("the client is closed")
        endpoint = self._endpoints.current()
        try:
            return await call(endpoint)
        except grpc.aio.AioRpcError as error:
            translated = error_of(error, endpoint.address, may_be_applied=True)
            # A cluster that changes no members now is one that answers.
            if error.code() in ROTATES and not isinstance(translated, MembershipRefused):
                self._endpoints.rotate(endpoint)
            raise translated from error
        except asyncio.CancelledError:
            if is_canceled_from_outside():
                raise
            raise OutcomeUnknown("the client was closed while the call was under way") from None

    async def _read(self, call: Callable[[Endpoint, float], Awaitable[_Answer]], timeout_s: float) -> _Answer:
        """Tries each member at most once, within the deadline."""
        deadline = time.monotonic() + timeout_s
        for attempts_left in reversed(range(max(1, len(self._endpoints)))):
            if self._endpoints.is_closed:
                break
            endpoint = self._endpoints.current()
            try:
                return await call(endpoint, max(deadline - time.monotonic(), 0.0))
            except grpc.aio.AioRpcError as error:
                if error.code() in ROTATES:
                    self._endpoints.rotate(endpoint)
                    if attempts_left and error.code() in NOT_TAKEN and time.monotonic() < deadline:
                        continue
                raise error_of(error, endpoint.address, may_be_applied=False) from error
            except asyncio.CancelledError:
                if is_canceled_from_outside():
                    raise
                break
        raise StoreUnavailable("the client is closed")


async def _save(parts: AsyncIterable[pb.SnapshotResponse], file: Path) -> int:
    """Writes a snapshot and checks it: behind the database etcd sends the SHA-256 of it."""
    digest, size, held = hashlib.sha256(), 0, b""
    with file.open("wb") as out:
        async for part in parts:
            data = held + part.blob
            data, held = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
            await asyncio.to_thread(_append, out, digest, data)
            size += len(data)
        if digest.digest() != held:
            raise StoreUnavailable("the snapshot does not fit its checksum: it was cut off on its way")
        await asyncio.to_thread(_finish, out, held)
    return size + len(held)


def _append(out: BinaryIO, digest: hashlib._Hash, data: bytes) -> None:
    out.write(data)
    digest.update(data)


def _finish(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()
    os.fsync(out.fileno())


def _only_reads(txn: Txn) -> bool:
    return all(_is_read(op) for op in txn.success) and all(_is_read(op) for op in txn.failure)


def _is_read(op: Op) -> bool:
    if isinstance(op, Txn):
        return _only_reads(op)
    return isinstance(op, Range)
