"""What befalls a cluster as such: hosts that are removed and come back as others, copies of a data directory, and links
that carry one way.

Drawn beside the faults of `faults.py`, from a chance of its own, and in half of all worlds only, so that the others
stay as they were. Somebody looks after the cluster all the while (`tend`): a host that was refused is given an empty
directory and a token where it was removed, and is started again where somebody else had its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from etcd import keys
from node.cluster.host_record import NodeRemoved
from node.core.model import Capacity
from node.core.voters import GRACE_S
from tests.simulation.checks import Checks
from tests.simulation.host import Host
from tests.simulation.loop import true_time
from tests.simulation.network import Cluster
from tests.simulation.newcomers import Newcomers, NotAdmitted

#: How often somebody looks whether a host was refused.
LOOK_S = 0.5


class Upheavals:
    """Draws and undoes them."""

    def __init__(
        self,
        hosts: list[Host],
        cluster: Cluster,
        newcomers: Newcomers,
        chance: Random,
        *,
        checks: Checks,
        tell: Callable[[str], None],
    ) -> None:
        self._hosts = hosts
        self._cluster = cluster
        self._newcomers = newcomers
        self._checks = checks
        self._chance = chance
        self._tell = tell
        self._copies: list[Host] = []

    async def run(self, within_s: float) -> None:
        """Within the first half of a world."""
        if self._chance.random() < 0.5 and self._hosts[0].members is None:
            return
        kinds = [self._one_way, self._one_way, self._remove, self._remove, self._copy, self._suspend, self._suspend]
        kinds += [self._join_together] * (self._hosts[0].members is None)
        kinds += [self._kill_etcd, self._kill_etcd, self._away, self._away] * (self._hosts[0].members is not None)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._chance.choice([1, 2, 3])):
                at_s = self._chance.uniform(0.0, 0.8 * within_s)
                group.create_task(self._one(self._chance.choice(kinds), at_s))

    async def _one(self, kind: Callable[[Host], Coroutine[Any, Any, None]], at_s: float) -> None:
        await asyncio.sleep(at_s)
        host = self._chance.choice(self._hosts)
        if kind == self._copy:
            await kind(host)  # which may leave the host alone
            return
        host.disturb(1)
        await kind(host)
        host.disturb(-1)

    async def tend(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for host in self._hosts:
                if host.node is None or host.node.refused is None or host.is_up:
                    continue
                if isinstance(host.node.refused, NotAdmitted):
                    continue
                if isinstance(host.node.refused, NodeRemoved) or self._is_removed(host):
                    await self._take_in_again(host)
                elif not any(copy.id == host.id and copy.is_up for copy in self._copies):
                    host.start()

    def heal(self) -> None:
        """Everything, at once; `tend` goes on."""
        for copy in self._copies:
            copy.kill()
        for host in self._hosts:
            host.link.heal_one_way()
            self._go_on(host)

    # Kinds

    async def _one_way(self, host: Host) -> None:
        is_deaf = self._chance.random() < 0.5
        self._tell(f"{host.name} {'hears nothing, and is heard' if is_deaf else 'is not heard, and hears'}")
        host.link.cut_one_way(is_deaf=is_deaf)
        await asyncio.sleep(self._chance.choice([0.7, 3.0, 6.0, 14.0]) * self._chance.uniform(0.3, 1.0))
        self._tell(f"{host.name} hears and is heard again")
        host.link.heal_one_way()

    async def _kill_etcd(self, host: Host) -> None:
        if host.members is not None and host.members.kill_etcd(host):
            self._tell(f"{host.name}: etcd is killed")
        await asyncio.sleep(self._chance.uniform(0.3, 3.0))

    async def _away(self, host: Host) -> None:
        """For so long that its vote is given to another, where there is one."""
        host.kill()
        await asyncio.sleep(GRACE_S + self._chance.uniform(0.0, 15.0))
        if not host.is_up:
            host.start()

    async def _suspend(self, host: Host) -> None:
        """Its machine is paused with its clock: nothing on it sees that time went by, until it hears from others."""
        self._tell(f"{host.name} is paused with its clock")
        host.pause_machine()
        await asyncio.sleep(self._chance.choice([1.0, 7.0, 14.0]) * self._chance.uniform(0.3, 1.0))
        self._go_on(host)

    def _go_on(self, host: Host) -> None:
        if host.machine.is_paused:
            self._tell(f"{host.name} goes on, and does not know that time went by")
            host.resume_machine()

    async def _remove(self, host: Host) -> None:
        """It is dead or cut off; somebody removes it, and it may come back at any moment."""
        if host is self._hosts[0]:
            return  # somebody must be left to answer those who come back
        host.may_be_refused = True
        is_cut = self._chance.random() < 0.4
        if is_cut:
            self._tell(f"{host.name} is cut off, and is to be removed")
            host.link.is_cut = True
        else:
            self._tell(f"{host.name} is to be removed")
            host.kill()
        removing = asyncio.create_task(self._newcomers.remove(host, within_s=self._chance.choice([8.0, 20.0])))
        await asyncio.sleep(self._chance.choice([2.0, 6.0, 8.0, 14.0]) * self._chance.uniform(0.5, 1.0))
        if is_cut:
            self._tell(f"{host.name} is connected again")
            host.link.is_cut = False
        elif not host.is_up:
            host.start()
        if await removing:
            self._tell(f"{host.name} is removed")

    def _is_removed(self, host: Host) -> bool:
        removed = keys.removed_key(host.id)
        return any(kv.key == removed for kv in self._cluster.store.read_all())

    async def _take_in_again(self, host: Host) -> None:
        """As its refusal says: an empty directory, and a new token. Under its old name, or under one made up."""
        refused = host.node
        token = await self._newcomers.make_token(self._chance.choice([0, 1]))
        if host.node is not refused:
            return  # it was started meanwhile, and is refused again
        host.wipe(self._new_id())
        for one in self._hosts:
            one.wall_offset[0] = 0.0  # a newcomer whose clock differs is not admitted: they are set
        self._checks.capacity[host.id] = host.capacity
        name = host.name if self._chance.random() < 0.5 else ""
        host.admission = self._newcomers.admission(host.id, token, name)
        host.start()

    async def _join_together(self, host: Host) -> None:
        """Two new hosts at once, under one made-up name; their token may be good for one alone."""
        token = await self._newcomers.make_token(self._chance.choice([1, 2]))
        at = true_time() + 0.5
        for _ in range(2):
            name, host_id = f"h{len(self._hosts)}", self._new_id()
            chance, capacity = Random(self._chance.getrandbits(64)), Capacity(1.0, 1 << 34)
            new = self._host(name, host_id, chance, capacity)
            new.admission, new.may_be_refused = self._newcomers.admission(host_id, token, "", at=at), True
            new.limits = host.limits
            self._checks.capacity[host_id] = capacity
            self._hosts.append(new)
            new.start()

    def _host(self, name: str, host_id: str, chance: Random, capacity: Capacity) -> Host:
        checks = self._checks
        return Host(name, host_id, self._cluster, checks, chance, capacity=capacity, add=checks.add, tell=self._tell)

    def _new_id(self) -> str:
        return f"00000000-0000-4000-8000-{self._chance.getrandbits(48):012x}"

    async def _copy(self, host: Host) -> None:
        """A copy of its data directory is started on another machine, in its place, or beside it: then it must not
        notice."""
        host.may_be_refused = True
        is_beside = host.is_up and self._chance.random() < 0.5
        if not is_beside:
            host.disturb(1)
            host.kill()
        chance = Random(self._chance.getrandbits(64))
        machine = f"{host.name}-copy{len(self._copies)}"
        copy = self._host(machine, host.id, chance, host.capacity)
        copy.last_run, copy.node_name, copy.may_be_refused = host.last_run, host.node_name, True
        self._copies.append(copy)
        copy.start()
        await asyncio.sleep(self._chance.choice([1.0, 8.0, 20.0]) * self._chance.uniform(0.3, 1.0))
        if not host.is_up:
            host.start()
        await asyncio.sleep(self._chance.choice([1.0, 8.0]) * self._chance.uniform(0.3, 1.0))
        copy.kill()
        if not is_beside:
            host.disturb(-1)
