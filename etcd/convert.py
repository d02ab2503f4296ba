"""Between the port's plain values and etcd's protobuf messages; nothing else, and no I/O.

Every transition of every task passes here twice, so it is kept lean: messages are filled in place (`add()`), which
costs less than half of passing finished sub-messages to constructors (these are copied).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from etcd import rpc_pb2 as pb
from etcd.port import (
    Compare,
    Delete,
    DeleteResult,
    Event,
    KeyValue,
    Member,
    Op,
    OpResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Relation,
    Target,
    Txn,
    TxnResult,
)

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

#: Values converted between two looks at the loop: a listing of a million keys must not hold it for a second.
SLICE = 5_000

_RELATION = {
    Relation.EQUAL: pb.Compare.EQUAL,
    Relation.GREATER: pb.Compare.GREATER,
    Relation.LESS: pb.Compare.LESS,
    Relation.NOT_EQUAL: pb.Compare.NOT_EQUAL,
}


def range_request(op: Range) -> pb.RangeRequest:
    message = pb.RangeRequest()
    _fill_range(message, op)
    return message


def txn_request(txn: Txn) -> pb.TxnRequest:
    message = pb.TxnRequest()
    _fill_txn(message, txn)
    return message


def _fill_range(message: pb.RangeRequest, op: Range) -> None:
    message.key = op.key
    if op.range_end:
        message.range_end = op.range_end
    if op.limit:
        message.limit = op.limit
    if op.keys_only:
        message.keys_only = True
    if op.count_only:
        message.count_only = True
    if op.descending:
        message.sort_order = pb.RangeRequest.DESCEND
    if op.revision:
        message.revision = op.revision
    if op.serializable:
        message.serializable = True


def _fill_txn(message: pb.TxnRequest, txn: Txn) -> None:
    for compare in txn.compares:
        _fill_compare(message.compare.add(), compare)
    _fill_ops(message.success, txn.success)
    _fill_ops(message.failure, txn.failure)


def _fill_compare(message: pb.Compare, compare: Compare) -> None:
    message.key = compare.key
    message.result = _RELATION[compare.relation]
    target, operand = compare.target, compare.operand
    if isinstance(operand, bytes):
        if target is not Target.VALUE:
            raise TypeError(f"{target} of {compare.key!r} is compared with a number, not with bytes")
        message.target = pb.Compare.VALUE
        message.value = operand
    elif target is Target.CREATE:
        message.target = pb.Compare.CREATE
        message.create_revision = operand
    elif target is Target.MOD:
        message.target = pb.Compare.MOD
        message.mod_revision = operand
    elif target is Target.VERSION:
        message.target = pb.Compare.VERSION
        message.version = operand
    elif target is Target.LEASE:
        message.target = pb.Compare.LEASE
        message.lease = operand
    else:
        raise TypeError(f"the value of {compare.key!r} is compared with bytes, not with a number")


def _fill_ops(messages: RepeatedCompositeFieldContainer[pb.RequestOp], ops: Sequence[Op]) -> None:
    for op in ops:
        message = messages.add()
        if isinstance(op, Put):
            put = message.request_put
            put.key = op.key
            if op.value:
                put.value = op.value
            if op.lease:
                put.lease = op.lease
        elif isinstance(op, Delete):
            delete = message.request_delete_range
            delete.key = op.key
            if op.range_end:
                delete.range_end = op.range_end
        elif isinstance(op, Range):
            _fill_range(message.request_range, op)
        else:
            nested = message.request_txn
            nested.SetInParent()  # an empty transaction sets no field, and so would leave no trace
            _fill_txn(nested, op)


def _key_value(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


async def key_values(kvs: Sequence[pb.KeyValue]) -> tuple[KeyValue, ...]:
    """Converts a listing of any size, without holding the loop for long."""
    if len(kvs) <= SLICE:
        return tuple([_key_value(kv) for kv in kvs])
    done: list[KeyValue] = []
    for start in range(0, len(kvs), SLICE):
        done += [_key_value(kv) for kv in kvs[start : start + SLICE]]
        await asyncio.sleep(0)
    return tuple(done)


async def events(messages: Sequence[pb.Event]) -> tuple[Event, ...]:
    """Converts a batch of any size (a replay of 100,000 events comes as one message), as `key_values` does."""
    done: list[Event] = []
    for start in range(0, len(messages), SLICE):
        done += [Event(_key_value(e.kv), e.type == pb.Event.DELETE) for e in messages[start : start + SLICE]]
        if len(messages) > SLICE:
            await asyncio.sleep(0)
    return tuple(done)


def member(message: pb.Member) -> Member:
    return Member(
        message.ID, message.name, tuple(message.peerURLs), tuple(message.clientURLs), is_learner=message.isLearner
    )


async def range_result(message: pb.RangeResponse) -> RangeResult:
    return RangeResult(await key_values(message.kvs), message.count, message.more, message.header.revision)


def txn_result(message: pb.TxnResponse) -> TxnResult:
    """All parts carry the revision of the whole transaction: nested ones have no header of their own."""
    return _txn_result(message, message.header.revision)


def _txn_result(message: pb.TxnResponse, revision: int) -> TxnResult:
    return TxnResult(message.succeeded, tuple(_results(message.responses, revision)), revision)


def _results(messages: Iterable[pb.ResponseOp], revision: int) -> Iterable[OpResult]:
    put = PutResult(revision)
    for message in messages:
        kind = message.WhichOneof("response")
        if kind == "response_put":
            yield put
        elif kind == "response_txn":
            yield _txn_result(message.response_txn, revision)
        elif kind == "response_delete_range":
            yield DeleteResult(message.response_delete_range.deleted, revision)
        else:
            got = message.response_range
            yield RangeResult(tuple([_key_value(kv) for kv in got.kvs]), got.count, got.more, revision)
