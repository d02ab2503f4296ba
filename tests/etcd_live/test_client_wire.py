"""The hand-written wire contract (`protos/etcd/rpc.proto`), every field of it, against a real server.

A wrong number or type shows as a value that does not come back. Fields that only a fault or a cluster can fill are
checked by their number alone, against etcd's own files (api/etcdserverpb/rpc.proto, api/mvccpb/kv.proto).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message

from etcd import rpc_pb2 as pb
from etcd.endpoints import Endpoint
from tests.support.etcd_process import EtcdProcess

pytestmark = pytest.mark.etcd

#: Fields that came back with a value, as MESSAGE.FIELD.
_seen: set[str] = set()

#: Cannot be made to come back from one healthy etcd. number: as in etcd's files.
BY_NUMBER = {
    "LeaseGrantResponse.error": 4,
    "DefragmentResponse.header": 1,
    "AlarmResponse.header": 1,
    "SnapshotResponse.header": 1,
    "SnapshotResponse.remaining_bytes": 2,
    "WatchResponse.cancel_reason": 6,
    "StatusResponse.errors": 8,
    "StatusResponse.isLearner": 10,
    "Member.isLearner": 5,
    "MemberRemoveResponse.header": 1,
    "MemberRemoveResponse.members": 2,
    "MemberPromoteResponse.header": 1,
    "MemberPromoteResponse.members": 2,
    "MoveLeaderResponse.header": 1,
    "MoveLeaderRequest.targetID": 1,
    "MemberPromoteRequest.ID": 1,
    "MemberRemoveRequest.ID": 1,
    "WatchCancelRequest.watch_id": 1,
}


def note(message: Message) -> None:
    """Remembers which fields have a value."""
    for field, value in message.ListFields():
        _seen.add(f"{message.DESCRIPTOR.name}.{field.name}")
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                note(part)


@pytest_asyncio.fixture
async def etcd(own_etcd: EtcdProcess) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(own_etcd.address, own_etcd.tls)
    yield endpoint
    await endpoint.channel.close()


async def call(method: Any, request: Message) -> Any:
    """One unary call; notes what was sent (a server that misread it would answer otherwise) and what came."""
    answer = await method(request, timeout=10)
    note(request)
    note(answer)
    return answer


def put(key: bytes, value: bytes = b"", lease: int = 0) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


async def test_every_field(etcd: Endpoint) -> None:
    lease = await _leases(etcd)
    await _keys(etcd, lease)
    await _ranges(etcd)
    await _compares(etcd, lease)
    await _watch(etcd)
    await _upkeep(etcd)
    await _members(etcd)
    everything = {
        f"{message.name}.{field.name}"
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert everything - _seen - BY_NUMBER.keys() == set(), "fields that no test uses"
    for name, number in BY_NUMBER.items():
        message, _, field = name.partition(".")
        assert pb.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].number == number


async def _leases(etcd: Endpoint) -> int:
    granted = await call(etcd.lease.LeaseGrant, pb.LeaseGrantRequest(TTL=60, ID=4711))
    assert (granted.ID, granted.TTL) == (4711, 60)
    txn = pb.TxnRequest(success=[put(b"/leased", b"", 4711)])
    await call(etcd.kv.Txn, txn)
    left = await call(etcd.lease.LeaseTimeToLive, pb.LeaseTimeToLiveRequest(ID=4711, keys=True))
    assert (left.ID, left.grantedTTL, list(left.keys)) == (4711, 60, [b"/leased"])
    assert 50 < left.TTL <= 60
    stream = etcd.lease.LeaseKeepAlive()
    ping = pb.LeaseKeepAliveRequest(ID=4711)
    await stream.write(ping)
    answer = await stream.read()
    assert isinstance(answer, pb.LeaseKeepAliveResponse)
    assert (answer.ID, answer.TTL) == (4711, 60)
    note(ping)
    note(answer)
    stream.cancel()
    other = await call(etcd.lease.LeaseGrant, pb.LeaseGrantRequest(TTL=60))
    await call(etcd.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=other.ID))
    with pytest.raises(grpc.aio.AioRpcError, match="lease not found"):
        await etcd.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=other.ID), timeout=10)
    return int(granted.ID)


async def _keys(etcd: Endpoint, lease: int) -> None:
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"/d", range_end=b"/e"))
    await call(etcd.kv.Txn, pb.TxnRequest(success=[put(b"/d1"), put(b"/d2"), put(b"/keep", b"1", lease)]))
    absent = pb.Compare(key=b"/x", target=pb.Compare.CREATE, result=pb.Compare.GREATER, create_revision=0)
    nested = pb.RequestOp(request_txn=pb.TxnRequest(compare=[absent], success=[put(b"/no")], failure=[put(b"/yes")]))
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"/keep"))
    done = await call(etcd.kv.Txn, pb.TxnRequest(success=[delete, nested, read, put(b"/keep", b"2", lease)]))
    assert done.succeeded
    deleted, inner, got, _ = done.responses
    assert deleted.response_delete_range.deleted == 2
    assert deleted.response_delete_range.header.revision == done.header.revision
    assert not inner.response_txn.succeeded
    assert inner.response_txn.responses[0].WhichOneof("response") == "response_put"
    (kv,) = got.response_range.kvs
    assert (kv.key, kv.value, kv.version, kv.lease) == (b"/keep", b"1", 1, lease)
    assert kv.create_revision == kv.mod_revision == done.header.revision - 1
    assert done.header.cluster_id
    assert done.header.member_id
    assert done.header.raft_term


async def _ranges(etcd: Endpoint) -> None:
    await call(etcd.kv.Txn, pb.TxnRequest(success=[put(b"/r1", b"b"), put(b"/r2", b"a"), put(b"/r3", b"c")]))

    async def keys(**fields: Any) -> list[bytes]:
        answer = await call(etcd.kv.Range, pb.RangeRequest(key=b"/r", range_end=b"/s", **fields))
        return [kv.key for kv in answer.kvs]

    assert await keys(sort_order=pb.RangeRequest.DESCEND) == [b"/r3", b"/r2", b"/r1"]
    assert await keys(sort_order=pb.RangeRequest.ASCEND, sort_target=pb.RangeRequest.VALUE) == [b"/r2", b"/r1", b"/r3"]
    assert await keys(serializable=True) == [b"/r1", b"/r2", b"/r3"]
    assert await keys(count_only=True) == []
    limited = await call(etcd.kv.Range, pb.RangeRequest(key=b"/r", range_end=b"/s", limit=2, keys_only=True))
    assert ([(kv.key, kv.value) for kv in limited.kvs], limited.more, limited.count) == (
        [(b"/r1", b""), (b"/r2", b"")],
        True,
        3,
    )
    assert await keys(revision=limited.header.revision - 1) == []


async def _compares(etcd: Endpoint, lease: int) -> None:
    answer = await call(etcd.kv.Range, pb.RangeRequest(key=b"/keep"))
    (kv,) = answer.kvs
    assert (kv.version, kv.lease) == (2, lease)
    right: list[dict[str, Any]] = [
        {"target": pb.Compare.VERSION, "version": 2},
        {"target": pb.Compare.CREATE, "create_revision": kv.create_revision},
        {"target": pb.Compare.MOD, "mod_revision": kv.mod_revision},
        {"target": pb.Compare.VALUE, "value": b"2"},
        {"target": pb.Compare.LEASE, "lease": lease},
    ]
    for fields in right:
        for result, holds in ((pb.Compare.EQUAL, True), (pb.Compare.NOT_EQUAL, False), (pb.Compare.LESS, False)):
            compare = pb.Compare(key=b"/keep", result=result, **fields)
            assert (await call(etcd.kv.Txn, pb.TxnRequest(compare=[compare]))).succeeded == holds, fields


async def _watch(etcd: Endpoint) -> None:
    start = (await call(etcd.kv.Range, pb.RangeRequest(key=b"/"))).header.revision
    stream = etcd.watch.Watch()
    create = pb.WatchCreateRequest(
        key=b"/v", range_end=b"/w", start_revision=start + 1, progress_notify=True, watch_id=7
    )
    request = pb.WatchRequest(create_request=create)
    await stream.write(request)
    note(request)

    async def next_response() -> pb.WatchResponse:
        response = await stream.read()
        assert isinstance(response, pb.WatchResponse)
        note(response)
        return response

    created = await next_response()
    assert (created.created, created.watch_id) == (True, 7)
    await call(etcd.kv.Txn, pb.TxnRequest(success=[put(b"/v", b"x"), put(b"/other")]))
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"/v"))
    await call(etcd.kv.Txn, pb.TxnRequest(success=[delete]))
    events: list[pb.Event] = []
    while len(events) < 2:
        events += list((await next_response()).events)
    assert [(e.type, e.kv.key, e.kv.value, e.kv.mod_revision) for e in events] == [
        (pb.Event.PUT, b"/v", b"x", start + 1),
        (pb.Event.DELETE, b"/v", b"", start + 2),
    ]
    filters = [pb.WatchCreateRequest.NODELETE]
    puts_only = pb.WatchCreateRequest(key=b"/v", range_end=b"/w", start_revision=start + 1, watch_id=9, filters=filters)
    request = pb.WatchRequest(create_request=puts_only)
    await stream.write(request)
    note(request)
    assert ((created := await next_response()).created, created.watch_id) == (True, 9)
    replayed = await next_response()
    assert [(replayed.watch_id, e.type, e.kv.key) for e in replayed.events] == [(9, pb.Event.PUT, b"/v")]
    await stream.write(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=9)))
    assert (await next_response()).canceled
    cancel = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=7))
    await stream.write(cancel)
    note(cancel)
    canceled = await next_response()
    assert (canceled.canceled, canceled.watch_id) == (True, 7)
    await call(etcd.kv.Compact, pb.CompactionRequest(revision=start + 1, physical=True))
    create.start_revision, create.watch_id = start, 8
    await stream.write(pb.WatchRequest(create_request=create))
    refused = await next_response()
    if refused.created and not refused.canceled:  # 3.5 says created first, then canceled
        refused = await next_response()
    assert (refused.canceled, refused.compact_revision) == (True, start + 1)
    stream.cancel()


async def _upkeep(etcd: Endpoint) -> None:
    status = await call(etcd.maintenance.Status, pb.StatusRequest())
    assert status.version.startswith("3.")
    assert status.leader == status.header.member_id
    assert 0 < status.dbSizeInUse <= status.dbSize
    assert 0 < status.raftAppliedIndex <= status.raftIndex
    assert status.raftTerm == status.header.raft_term
    await call(etcd.maintenance.Defragment, pb.DefragmentRequest())
    me = status.header.member_id
    raised = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=me, alarm=pb.NOSPACE)
    await call(etcd.maintenance.Alarm, raised)
    listed = await call(etcd.maintenance.Alarm, pb.AlarmRequest(action=pb.AlarmRequest.GET))
    assert [(alarm.memberID, alarm.alarm) for alarm in listed.alarms] == [(me, pb.NOSPACE)]
    raised.action = pb.AlarmRequest.DEACTIVATE
    await call(etcd.maintenance.Alarm, raised)
    assert not (await call(etcd.maintenance.Alarm, pb.AlarmRequest(action=pb.AlarmRequest.GET))).alarms
    size = 0
    async for part in etcd.maintenance.Snapshot(pb.SnapshotRequest()):
        note(part)
        size += len(part.blob)
    assert size > part.remaining_bytes == 0
    with pytest.raises(grpc.aio.AioRpcError, match=r"not leader|bad leader transferee|member not found"):
        await etcd.maintenance.MoveLeader(pb.MoveLeaderRequest(targetID=12345), timeout=10)


async def _members(etcd: Endpoint) -> None:
    """Adding a learner leaves the quorum as it is; nothing but listing is done after it."""
    (me,) = (await call(etcd.cluster.MemberList, pb.MemberListRequest(linearizable=True))).members
    assert me.name == "test"
    updated = await call(etcd.cluster.MemberUpdate, pb.MemberUpdateRequest(ID=me.ID, peerURLs=["https://127.0.0.1:9"]))
    assert list(updated.members[0].peerURLs) == ["https://127.0.0.1:9"]
    with pytest.raises(grpc.aio.AioRpcError, match="member not found"):
        await etcd.cluster.MemberPromote(pb.MemberPromoteRequest(ID=12345), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError, match="member not found"):
        await etcd.cluster.MemberRemove(pb.MemberRemoveRequest(ID=12345), timeout=10)
    add = pb.MemberAddRequest(peerURLs=["https://127.0.0.1:10"], isLearner=True)
    added = await call(etcd.cluster.MemberAdd, add)
    assert added.member.isLearner
    assert {member.ID for member in added.members} == {me.ID, added.member.ID}
