"""The batcher against a real etcd: the tests are those of tests/unit/test_batcher.py, and its group size."""

from __future__ import annotations

import pytest
import pytest_asyncio

from etcd.batcher import Applied, Batcher
from etcd.client import EtcdClient
from etcd.port import Etcd
from tests.support.tasks import snapshot
from tests.unit.test_batcher import (
    apply_all,
    batcher,
    recorder,
    submits,
    test_a_batch_is_bounded_in_bytes,
    test_a_task_is_once_in_a_batch,
    test_each_gets_its_own_answer,
    test_groups_form_under_load,
    test_many_of_one_call_in_order,
    test_one_invalid_fails_alone,
    test_one_too_large_fails_alone,
    test_reads_share_a_call_and_are_no_writes,
    test_those_of_one_moment_share_a_call,
)

__all__ = [
    "batcher",
    "recorder",
    "test_a_batch_is_bounded_in_bytes",
    "test_a_task_is_once_in_a_batch",
    "test_each_gets_its_own_answer",
    "test_groups_form_under_load",
    "test_many_of_one_call_in_order",
    "test_one_invalid_fails_alone",
    "test_one_too_large_fails_alone",
    "test_reads_share_a_call_and_are_no_writes",
    "test_those_of_one_moment_share_a_call",
]

pytestmark = pytest.mark.etcd


@pytest_asyncio.fixture
async def etcd(etcd_client: EtcdClient) -> Etcd:
    return etcd_client


async def test_batches_fit_etcds_default_limit_of_operations(etcd: Etcd) -> None:
    """--max-txn-ops is 128, less the widest nested transaction: 100 need no flag, with nothing refused."""
    async with Batcher(etcd) as opened:
        answers = await apply_all(opened, submits(2000))
    assert {type(answer) for answer in answers} == {Applied}
    assert len(await snapshot(etcd)) == 4000
