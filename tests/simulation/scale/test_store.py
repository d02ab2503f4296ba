"""The fast store answers as the one whose contract is held to etcd."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from etcd.port import Delete, Op, Put, Range, Txn
from tests.simulation.scale.store import ScaleStore
from tests.support.fake_store import FakeStore

PREFIXES = (b"/task/status/queued/", b"/task/status/running/", b"/task/meta/")
KEYS = tuple(prefix + name for prefix in PREFIXES for name in (b"a", b"b", b"c"))


def prefix_end(prefix: bytes) -> bytes:
    return prefix[:-1] + b"0"  # what comes after the slash


writes = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), st.binary(max_size=1)),
    st.builds(Delete, st.sampled_from(KEYS)),
    st.builds(lambda prefix: Delete(prefix, prefix_end(prefix)), st.sampled_from(PREFIXES)),
)
ranges = st.one_of(
    st.builds(Range, st.sampled_from(KEYS)),
    st.builds(
        lambda prefix, **options: Range(prefix, prefix_end(prefix), **options),
        st.sampled_from((*PREFIXES, b"/task/")),
        limit=st.integers(0, 4),
        count_only=st.booleans(),
        keys_only=st.booleans(),
        descending=st.booleans(),
    ),
)


@given(st.lists(writes, max_size=12), st.lists(ranges, min_size=1, max_size=8))
def test_ranges_answer_alike(changes: list[Op], asked: list[Range]) -> None:
    fast, plain = ScaleStore(), FakeStore()
    for change in changes:
        assert fast.transact(Txn(success=(change,)), 0.0) == plain.transact(Txn(success=(change,)), 0.0)
    for what in asked:
        assert fast.read(what) == plain.read(what)
