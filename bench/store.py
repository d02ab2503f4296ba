"""Task life cycles a second of the store against a real etcd, and what one costs this process.

usage: python -m bench.store [TASKS]
Submit, read, claim, finish: each step for all tasks, as a node does it (finishes one call each, 500 at a time), then
the Python cost of the codec alone. The floor to compare with: measurements of bare nested transactions in groups of 100
reached 12,000 life cycles a second on an idle two-core machine, with no records decoded and no futures waited for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from random import Random

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.client import EtcdClient
from etcd.identity import Identity
from etcd.port import Put, Txn
from etcd.store import Claim, TaskStore, Versioned
from node.core import lifecycle
from node.core.model import Outcome, Reason, Task, TaskSpec
from tests.support.etcd_process import etcd_running

NODE_ID = "aaaaaaaa-0000-4000-8000-00000000000a"
HOST_ID = "dddddddd-0000-4000-8000-00000000000d"
DONE = Outcome(Reason.EXITED, exit_code=0)
TIMEOUT_S = 60.0
#: Finishes under way at a time.
AT_ONCE = 500


class Clock:
    """Rates and costs of steps over the same number of tasks."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seconds = 0.0

    async def step(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        await work()
        seconds = time.perf_counter() - start
        self._seconds += seconds
        cost_us = (time.process_time() - cpu) / self._count * 1e6
        print(f"{name:12} {self._count / seconds:10,.0f} /s {cost_us:8.1f} us of this process")

    def total(self) -> None:
        print(f"{'life cycles':12} {self._count / self._seconds:10,.0f} /s")


async def life_cycles(etcd: EtcdClient, count: int) -> None:
    now = time.time()
    random = Random(1)
    clock = Clock(count)
    tasks = [lifecycle.submit(id_, TaskSpec("/bin/true"), now=now) for id_ in keys.new_task_ids(count, now, random)]
    joined = await etcd.txn(Txn(success=(Put(keys.node(NODE_ID), b"bench"),)))
    me = Identity(NODE_ID, HOST_ID, joined.revision)
    async with Batcher(etcd) as batcher:
        store = TaskStore(batcher, etcd)
        seen: list[Versioned] = []
        claims: list[Claim] = []

        async def submit() -> None:
            await store.submit_many(tasks, timeout_s=TIMEOUT_S)

        async def read() -> None:
            found = await store.read([task.id for task in tasks], timeout_s=TIMEOUT_S)
            seen.extend(one for one in found if one is not None)

        async def claim() -> None:
            for start in range(0, count, AT_ONCE):
                won = await store.claim_many(seen[start : start + AT_ONCE], me, now=now, timeout_s=TIMEOUT_S)
                claims.extend(one for one in won if isinstance(one, Claim))

        async def finish() -> None:
            for start in range(0, count, AT_ONCE):
                some = claims[start : start + AT_ONCE]
                await asyncio.gather(
                    *(store.finish(one, DONE, started_at=now, now=now, timeout_s=TIMEOUT_S) for one in some)
                )

        for name, work in (("submit", submit), ("read", read), ("claim", claim), ("finish", finish)):
            await clock.step(name, work)
        clock.total()
        if len(claims) != count:
            raise SystemExit(f"only {len(claims)} of {count} tasks were claimed")


def codec_cost(count: int) -> None:
    """Encoding and decoding a finished record, alone."""
    task = lifecycle.submit(keys.new_task_id(1.8e9, Random(1)), TaskSpec("/bin/true", args=("a", "b")), now=1.8e9)
    task = lifecycle.claim(task, node_id=NODE_ID, host_id=HOST_ID, now=1.8e9)
    task = lifecycle.finish(task, DONE, started_at=1.8e9, now=1.8e9)
    key, value = keys.task(task.id), codec.encode_task(task)

    def cost(work: Callable[[], Task | bytes]) -> float:
        start = time.process_time()
        for _ in range(count):
            work()
        return (time.process_time() - start) / count * 1e6

    encode = cost(lambda: codec.encode_task(task))
    decode = cost(lambda: codec.decode_task(key, value))
    print(f"codec        encode {encode:.1f} us, decode {decode:.1f} us, {len(value)} bytes")


async def main(count: int) -> None:
    with etcd_running() as process:
        await process.wait_ready()
        async with process.client() as client:
            await life_cycles(client, count)
    codec_cost(count)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
