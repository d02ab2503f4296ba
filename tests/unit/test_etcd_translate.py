"""etcd's and grpc's errors, and which of ours they become: what is definite, and what stays unknown."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from etcd import convert
from etcd.errors import (
    Compacted,
    InvalidRequest,
    LeaseNotFound,
    MemberNotFound,
    MemberNotLearner,
    MembershipRefused,
    NoSpace,
    OutcomeUnknown,
    RequestTooLarge,
    StoreError,
    StoreUnavailable,
)
from etcd.port import Compare, Relation, Target, Txn
from etcd.translate import ROTATES, error_of

Code = grpc.StatusCode

#: Texts as etcd's api/v3rpc/rpctypes/error.go has them.
DEFINITE: list[tuple[Code, str, type[StoreError]]] = [
    (Code.INVALID_ARGUMENT, "etcdserver: request is too large", RequestTooLarge),
    (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (3 vs. 2)", RequestTooLarge),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", NoSpace),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", StoreUnavailable),
    (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", InvalidRequest),
    (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", InvalidRequest),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", InvalidRequest),
    (Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
    (Code.NOT_FOUND, "etcdserver: member not found", MemberNotFound),
    (Code.UNAVAILABLE, "etcdserver: rpc not supported for learner", StoreUnavailable),
    (Code.UNAVAILABLE, "etcdserver: unhealthy cluster", MembershipRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster", MembershipRefused),
    (
        Code.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
        MembershipRefused,
    ),
    (Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member", MemberNotLearner),
    (
        Code.FAILED_PRECONDITION,
        "etcdserver: re-configuration failed due to not enough started members",
        MembershipRefused,
    ),
    (Code.UNKNOWN, "etcdserver: re-configuration failed due to not enough started members", MembershipRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists", MembershipRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: not leader", MembershipRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: lease already exists", InvalidRequest),
    (Code.UNIMPLEMENTED, "Method not found!", StoreUnavailable),
    (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", StoreUnavailable),
]

OPEN: list[tuple[Code, str]] = [
    (Code.UNAVAILABLE, "etcdserver: request timed out"),
    (Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
    (Code.UNAVAILABLE, "failed to connect to all addresses; connection refused"),
    (Code.UNAVAILABLE, "ping timeout"),
    (Code.DEADLINE_EXCEEDED, "Deadline Exceeded"),
    (Code.UNKNOWN, "context deadline exceeded"),
    (Code.INTERNAL, "stream reset"),
    (Code.CANCELLED, "canceled"),
    (Code.DATA_LOSS, "corrupt"),
    (Code.ABORTED, "something new"),
    (Code.RESOURCE_EXHAUSTED, "something new"),
]


def failure(code: Code, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


@pytest.mark.parametrize(("code", "details", "kind"), DEFINITE)
@pytest.mark.parametrize("may_be_applied", [False, True])
def test_what_etcd_refuses_is_definite_for_reads_and_writes(
    code: Code, details: str, kind: type[StoreError], may_be_applied: bool
) -> None:
    assert type(error_of(failure(code, details), "h:1", may_be_applied=may_be_applied)) is kind


@pytest.mark.parametrize(("code", "details"), OPEN)
def test_everything_else_leaves_a_write_unknown(code: Code, details: str) -> None:
    write = error_of(failure(code, details), "h:1", may_be_applied=True)
    assert type(write) is OutcomeUnknown
    read = error_of(failure(code, details), "h:1", may_be_applied=False)
    assert type(read) is StoreUnavailable
    for text in ("h:1", details, code.name):
        assert text in str(write)


def test_what_a_dead_or_frozen_member_answers_leads_to_another_one() -> None:
    assert {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN} <= ROTATES
    assert not {Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED} & ROTATES


@pytest.mark.parametrize(
    ("target", "operand"),
    [(Target.VALUE, 1), (Target.CREATE, b"1"), (Target.MOD, b""), (Target.VERSION, b""), (Target.LEASE, b"")],
)
def test_a_guard_that_compares_bytes_with_numbers_is_an_error_and_no_weaker_guard(
    target: Target, operand: int | bytes
) -> None:
    with pytest.raises(TypeError):
        convert.txn_request(Txn((Compare(b"/a", target, Relation.EQUAL, operand),)))
