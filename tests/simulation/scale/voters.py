"""etcd's own time: a leader that syncs and applies writes one group after another, and voters that read and push news.

Theory. A write waits for the leader's running sync, is synced together with all that wait (group commit), and is then
applied in order by one thread: at 60 us an RPC and 30 us an item that thread is full at some thousand small RPCs a
second, however many voters there are. A linearizable read asks the leader and is answered by its own voter, whose other
cores it shares with the pushing of news. Queues are without bound: senders have deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from tests.simulation.scale.speed import Speed


class Leader:
    """Writes, in order."""

    def __init__(self, speed: Speed) -> None:
        self._loop = asyncio.get_running_loop()
        self._speed = speed
        self._waiting: list[tuple[float, Callable[[], None]]] = []
        self._is_syncing = False
        self._free_at = 0.0
        #: Seconds in which it applied something, the longest queue before it in seconds, RPCs and items.
        self.busy_s = 0.0
        self.longest_wait_s = 0.0
        self.rpcs = 0
        self.items = 0

    def write(self, items: int, act: Callable[[], None]) -> None:
        """`act` is called when it is synced and its turn has come."""
        self.rpcs += 1
        self.items += items
        self._waiting.append((self._speed.write_rpc_s + items * self._speed.write_item_s, act))
        if not self._is_syncing:
            self._sync()

    def _sync(self) -> None:
        self._is_syncing = True
        group, self._waiting = self._waiting, []
        self._loop.call_later(self._speed.sync_s, self._synced, group)

    def _synced(self, group: list[tuple[float, Callable[[], None]]]) -> None:
        self._is_syncing = False
        if self._waiting:
            self._sync()
        now = self._loop.time()
        for cost_s, act in group:
            self._free_at = max(now, self._free_at) + cost_s
            self.busy_s += cost_s
            self._loop.call_at(self._free_at, act)
        self.longest_wait_s = max(self.longest_wait_s, self._free_at - now)


class Voter:
    """What a voter does beside applying."""

    def __init__(self, speed: Speed, chance: Random) -> None:
        self._loop = asyncio.get_running_loop()
        self._speed = speed
        self._chance = chance
        self._free_at = 0.0
        self.busy_s = 0.0
        self.longest_wait_s = 0.0

    def half_trip_s(self) -> float:
        return self._chance.uniform(*self._speed.half_trip_s)

    def work(self, cost_s: float) -> float:
        """Takes so many seconds of a core; gives the moment at which it is done."""
        now = self._loop.time()
        self._free_at = max(now, self._free_at) + cost_s / self._speed.other_cores
        self.busy_s += cost_s
        self.longest_wait_s = max(self.longest_wait_s, self._free_at - now)
        return self._free_at
