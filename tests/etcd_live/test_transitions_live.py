"""Every guard again, against a real etcd: the tests are those of tests/unit/test_transitions.py."""

from __future__ import annotations

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.port import Etcd
from tests.unit.test_transitions import (
    test_each_guard_alone_keeps_a_wrong_write_out,
    test_whole_life_keeps_record_and_index_together,
)

__all__ = ["test_each_guard_alone_keeps_a_wrong_write_out", "test_whole_life_keeps_record_and_index_together"]

pytestmark = pytest.mark.etcd


@pytest_asyncio.fixture
async def etcd(etcd_client: EtcdClient) -> Etcd:
    return etcd_client
