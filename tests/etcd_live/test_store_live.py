"""The store against a real etcd: the tests are those of tests/unit/test_store.py, and its size."""

from __future__ import annotations

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.port import Etcd
from etcd.store import Submitted, TaskStore
from node.core.model import Status
from tests.support.tasks import NOW, new_task
from tests.unit import test_store as on_the_fake

pytestmark = pytest.mark.etcd

#: Collected here too, with the fixture `etcd` below; the one left out needs an etcd without space.
globals().update(
    {
        name: value
        for name, value in vars(on_the_fake).items()
        if name in ("me", "other", "store") or (name.startswith("test_") and "without_space" not in name)
    }
)


@pytest_asyncio.fixture
async def etcd(etcd_client: EtcdClient) -> Etcd:
    return etcd_client


async def test_a_hundred_thousand_in_one_call(store: TaskStore) -> None:
    tasks = [new_task() for _ in range(100_000)]
    answers = await store.submit_many(tasks, timeout_s=100)
    assert [answer.task.id for answer in answers if isinstance(answer, Submitted)] == [task.id for task in tasks]
    # And listed again, newest first, without counting them all for every page.
    token, seen = "", 0
    for _ in range(3):
        page = await store.list_page(status=Status.QUEUED, page_size=500, page_token=token, newest_first=True, now=NOW)
        token, seen = page.next_token, seen + len(page.tasks)
    assert seen == 1500
