"""Random crowds on a real etcd: see tests/unit/test_store_turmoil.py. Here the course differs from run to run."""

from __future__ import annotations

import pytest

from etcd.client import EtcdClient
from tests.support.turmoil import Turmoil

pytestmark = pytest.mark.etcd


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_the_crowd_does(etcd_client: EtcdClient, seed: int) -> None:
    turmoil = Turmoil(seed, etcd_client)
    await turmoil.run(steps=30)
    await turmoil.check()
    assert turmoil.written
