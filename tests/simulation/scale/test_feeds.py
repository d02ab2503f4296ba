"""Whoever lists and then follows knows in the end what is there, however the news of many were put together."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest

from etcd import keys
from etcd.port import Delete, Op, Put, Range, Txn
from etcd.watch import Listing, list_and_watch
from tests.simulation.scale import loop
from tests.simulation.scale.etcd import ScaleEtcd, Service
from tests.simulation.scale.speed import Speed
from tests.simulation.scale.voters import Voter

RANGE = keys.queued()
KEYS = [RANGE.key + b"%02d" % number for number in range(20)]
ELSEWHERE = b"/task/status/running/x"
FOLLOWERS, WRITERS, WRITES = 40, 6, 60


class Follower:
    """Lists anew now and then, as a node does whose window is used up."""

    def __init__(self, etcd: ScaleEtcd, chance: Random) -> None:
        self._etcd = etcd
        self._chance = chance
        self.known: dict[bytes, bytes] = {}
        self.listings = 0

    async def run(self) -> None:
        while True:
            batches = self._chance.randrange(1, 30)
            async with contextlib.aclosing(list_and_watch(self._etcd, RANGE)) as queue:
                async for news in queue:
                    if isinstance(news, Listing):
                        self.listings += 1
                        self.known = {kv.key: kv.value for kv in news.kvs}
                        continue
                    for event in news.events:
                        if event.is_delete:
                            self.known.pop(event.kv.key, None)
                        else:
                            self.known[event.kv.key] = event.kv.value
                    batches -= 1
                    if batches == 0:
                        break


async def _write(etcd: ScaleEtcd, chance: Random) -> None:
    for number in range(WRITES):
        key = chance.choice([*KEYS, ELSEWHERE])
        write: Op = Delete(key) if chance.random() < 0.4 else Put(key, b"%d" % number)
        await etcd.txn(Txn(success=(write,)))
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.01]))


@pytest.mark.parametrize("seed", range(5))
def test_followers_know_what_is_there(seed: int) -> None:
    # Slow pushes, so that rounds of one voter take in much and those of two voters differ.
    speed = Speed(push_message_s=200e-6, behind_max=seed)

    async def whole() -> None:
        chance = Random(seed)
        voters = [Voter(speed, chance) for _ in range(speed.voters)]
        service = Service(speed, voters)
        followers = [
            Follower(ScaleEtcd(service, chance.choice(voters)), Random(chance.random())) for _ in range(FOLLOWERS)
        ]
        following = [asyncio.create_task(follower.run()) for follower in followers]
        await asyncio.gather(*(_write(ScaleEtcd(service, chance.choice(voters)), chance) for _ in range(WRITERS)))
        # At last some at once: the later ones are news while the first is being pushed.
        last = ScaleEtcd(service, voters[0])
        await asyncio.gather(*(last.txn(Txn(success=(Put(key, b"last"),))) for key in KEYS))
        await asyncio.sleep(10)
        there = {kv.key: kv.value for kv in service.store.read(Range(RANGE.key, RANGE.range_end)).kvs}
        assert there
        assert [follower.known for follower in followers] == [there] * FOLLOWERS
        assert sum(follower.listings for follower in followers) > 2 * FOLLOWERS
        for one in following:
            one.cancel()

    loop.run(whole())
