"""What befalls a world: each fault is drawn with its moment, its place and its length, and is undone again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from random import Random

from etcd import cluster_codec, keys
from etcd.port import Delete, Put, Txn
from node.core.model import Drain
from tests.simulation.clock import EPOCH, monotonic
from tests.simulation.host import Host, SimNode
from tests.simulation.loop import of_nobody
from tests.simulation.network import Cluster
from tests.simulation.promises import Promises
from tests.simulation.themes import Theme
from tests.support.fake_store import Change

#: How long a fault lasts at most.
LENGTHS_S = (0.05, 0.7, 3.0, 7.0, 14.0)
#: A stop that waits for a spawner which stands still gives its last processes 5 s, and its last writes as much.
STUCK_S = (11.0, 16.0)
#: From the end of the other, in a pause of both: until a lease is over, and its tasks run elsewhere.
LEASE_OVER_S = (5.0, 8.0)
#: From a submit until the claims of it are applied, for a host that is near: four ways.
CLAIM_S = 0.006


class Faults:
    """Draws and undoes them."""

    def __init__(
        self,
        hosts: list[Host],
        cluster: Cluster,
        promises: Promises,
        chance: Random,
        tell: Callable[[str], None],
        *,
        theme: Theme | None,
    ) -> None:
        """theme: what is drawn; None: everything."""
        self._hosts = hosts
        self._promises = promises
        self._cluster = cluster
        self._chance = chance
        self._tell = tell
        #: All that can be drawn, by the names that themes use.
        self.kinds: dict[str, Callable[[Host], Callable[[], None] | None]] = {
            "kill node": self._kill_node,
            "pause node": self._pause_node,
            "kill spawner": self._kill_spawner,
            "pause spawner": self._pause_spawner,
            "pause both": self._pause_both,
            "leave behind": self._leave_behind,
            "cut": self._cut,
            "cut all": self._cut_all,
            "lose answers": self._lose_answers,
            "lose writes' answers": self._lose_answers_of_writes,
            "lose reads' answers": self._lose_answers_of_reads,
            "linger": self._linger,
            "stall": self._stall,
            "slow": self._slow,
            "fade": self._fade,
            "reset connections": self._reset_connections,
            "stop node": self._stop_node,
            "stop stuck": self._stop_stuck,
            "jump clock": self._jump_clock,
            "lose leader": self._lose_leader,
            "compact": self._compact,
            "fill up": self._fill_up,
            "drain": self._drain,
            "delete key": self._delete_key,
        }
        drawn = theme.faults if theme is not None else (*self.kinds, "kill node", "cut", "stop node")
        self._drawn = [self.kinds[name] for name in drawn]
        #: Hosts of which the keys of their nodes are deleted soon after the next submit.
        self._doomed: list[Host] = []
        cluster.store.listeners.append(self._changed)
        self._lengths_s = theme.lengths_s if theme is not None else LENGTHS_S
        #: A host to which these happen counts as calm: it has to do as ever.
        self._no_excuse = (self._stall, self._jump_clock, self._compact, self._drain)
        #: In most worlds one host has more of it than the others: several things at once.
        self._victim = chance.choice([None, *hosts])

    async def run(self, count: int, within_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._one(self._chance.uniform(0.0, 0.9 * within_s)))
            group.create_task(asyncio.sleep(within_s))

    async def _one(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        host = self._chance.choice(self._hosts)
        if self._victim is not None and self._chance.random() < 0.5:
            host = self._victim
        kind = self._chance.choice(self._drawn)
        undo = kind(host)
        by = 0 if kind in self._no_excuse else 1
        self._disturb(host, by)
        await asyncio.sleep(self._chance.choice(self._lengths_s) * self._chance.uniform(0.3, 1.0))
        if undo is not None:
            undo()
        self._disturb(host, -by)

    def _disturb(self, host: Host, by: int) -> None:
        if by:
            host.disturb(by)

    def heal(self) -> None:
        """Everything, at once."""
        self._doomed.clear()
        if not self._cluster.has_leader:
            self._cluster.elect()
        self._cluster.store.disarm()
        for host in self._hosts:
            self._write(Delete(keys.drained_key(host.id)))
            link = host.link
            link.is_cut, link.loss, link.lingering, link.slowness = False, 0.0, 0.0, 1.0
            link.loss_of_writes = link.loss_of_reads = 0.0
            self._resume(host)
            if not host.is_up:
                host.start()

    def _resume(self, host: Host) -> None:
        if host.node is not None:
            host.node.process.resume()
        for spawner in host.spawners:
            spawner.process.resume()

    # Kinds

    def _kill_node(self, host: Host) -> Callable[[], None] | None:
        if host.node is None or not host.is_up:
            return None
        self._promises.killed(host, host.node)
        host.kill()
        return lambda: None if host.is_up else host.start()

    def _leave_behind(self, host: Host) -> Callable[[], None] | None:
        """The spawner stands still when its node is killed, so that what it runs goes on until the next start, which
        comes soon."""
        node = host.node
        if node is None or not host.is_up:
            return None
        self._tell(f"{host.name}: spawner paused, and the node killed")
        node.spawner.process.pause()
        self._promises.killed(host, node)
        host.kill()
        of_nobody(host.start_again, delay_s=self._chance.uniform(0.1, 1.0))

        def heal() -> None:
            node.spawner.process.resume()
            host.start_again()

        return heal

    def _stop_node(self, host: Host) -> Callable[[], None] | None:
        """SIGTERM, a second one perhaps, and a start."""
        node = host.node
        if node is None or not host.is_up:
            return None
        self._tell(f"{host.name} is told to stop")
        node.process.call_later(0.0, node.stop.set)
        if self._chance.random() < 0.3:
            node.process.call_later(self._chance.uniform(0.0, 3.0), node.hurry.set)
        resume = None
        if self._chance.random() < 0.2:
            resume = self._pause_spawner(host)
        else:
            self._promises.told_to_stop(host, node)

        def again() -> None:
            if resume is not None:
                resume()
            if host.node is node:
                if host.is_up:
                    host.kill()
                host.start()

        return again

    def _stop_stuck(self, host: Host) -> Callable[[], None] | None:
        """SIGTERM and soon another, while the spawner stands still for longer than the node waits for it."""
        node = host.node
        if node is None or not host.is_up:
            return None
        self._tell(f"{host.name} is told to stop, and its spawner is paused")
        node.spawner.process.pause()
        node.process.call_later(0.0, node.stop.set)
        node.process.call_later(self._chance.uniform(0.0, 0.5), node.hurry.set)
        host.disturb(1)
        of_nobody(self._end_stuck, host, node, delay_s=self._chance.uniform(*STUCK_S))
        return None

    def _end_stuck(self, host: Host, node: SimNode) -> None:
        node.spawner.process.resume()
        if host.node is node:
            if host.is_up:
                host.kill()
            host.start()
        host.disturb(-1)

    def _pause_node(self, host: Host) -> Callable[[], None] | None:
        node = host.node
        if node is None or not host.is_up:
            return None
        self._tell(f"{host.name}: node paused")
        node.process.pause()

        def resume() -> None:
            self._tell(f"{host.name}: node goes on")
            node.process.resume()

        return resume

    def _kill_spawner(self, host: Host) -> Callable[[], None] | None:
        if host.node is not None and host.is_up:
            spawner = host.node.spawner
            if self._chance.random() < 0.5:
                self._tell(f"{host.name}: spawner to be killed at its next start")
                spawner.dies_with_next = functools.partial(self._spawner_dies, host)
            else:
                self._tell(f"{host.name}: spawner killed")
                spawner.die()
        return None

    def _spawner_dies(self, host: Host) -> None:
        """At last: perhaps long after the fault was drawn."""
        self._tell(f"{host.name}: spawner killed with a start under way")
        host.disturb(1)
        host.disturb(-1)

    def _pause_spawner(self, host: Host) -> Callable[[], None] | None:
        if host.node is None or not host.is_up:
            return None
        process = host.node.spawner.process
        self._tell(f"{host.name}: spawner paused")
        process.pause()

        def resume() -> None:
            self._tell(f"{host.name}: spawner goes on")
            process.resume()

        return resume

    def _pause_both(self, host: Host) -> Callable[[], None] | None:
        """First the spawner, which keeps what it is asked for; then the node, so that nobody kills the spawner for its
        silence. The spawner goes on when the lease is over, and finds a start among what it was asked for."""
        node = host.node
        if node is None or not host.is_up:
            return None
        self._tell(f"{host.name}: spawner paused, and the node soon after")
        spawner, is_over = node.spawner.process, False
        spawner.pause()

        def pause_node() -> None:
            if not is_over:
                node.process.pause()

        paused_s = self._chance.uniform(0.1, 3.0)
        of_nobody(pause_node, delay_s=paused_s)
        of_nobody(spawner.resume, delay_s=paused_s + self._chance.uniform(*LEASE_OVER_S))

        def resume() -> None:
            nonlocal is_over
            is_over = True
            self._tell(f"{host.name}: both go on")
            spawner.resume()
            node.process.resume()

        return resume

    def _cut(self, host: Host) -> Callable[[], None]:
        self._tell(f"{host.name} is cut off")
        host.link.is_cut = True

        def heal() -> None:
            self._tell(f"{host.name} is connected again")
            host.link.is_cut = False

        return heal

    def _cut_all(self, _host: Host) -> Callable[[], None]:
        """etcd is well, its leases run, and nobody reaches it; the hosts come back one by one."""
        self._tell("all hosts are cut off")
        for host in self._hosts:
            host.link.is_cut = True
            self._disturb(host, 1)

        def heal() -> None:
            for host in self._hosts:
                of_nobody(self._reconnect, host, delay_s=self._chance.choice([0.0, 0.0, 0.02, 1.0]))

        return heal

    def _reconnect(self, host: Host) -> None:
        self._tell(f"{host.name} is connected again")
        host.link.is_cut = False
        self._disturb(host, -1)

    def _lose_answers(self, host: Host) -> Callable[[], None]:
        host.link.loss = self._chance.choice([0.1, 0.5, 1.0])
        self._tell(f"{host.name}: {host.link.loss:.0%} of all answers are lost")

        def heal() -> None:
            host.link.loss = 0.0

        return heal

    def _lose_answers_of_writes(self, host: Host) -> Callable[[], None]:
        """What is written is written, and what is read is read: the worst for whoever takes no answer for a no."""
        host.link.loss_of_writes = self._chance.choice([0.7, 1.0])
        self._tell(f"{host.name}: {host.link.loss_of_writes:.0%} of all answers to writes are lost")

        def heal() -> None:
            host.link.loss_of_writes = 0.0

        return heal

    def _lose_answers_of_reads(self, host: Host) -> Callable[[], None]:
        """The news comes, and what it means cannot be read."""
        self._tell(f"{host.name}: all answers to reads are lost")
        host.link.loss_of_reads = 1.0

        def heal() -> None:
            host.link.loss_of_reads = 0.0

        return heal

    def _linger(self, host: Host) -> Callable[[], None]:
        """Each request is held up for a while of its own, in a member that passes it on late: what is given up by its
        sender, and sent again, is applied all the same, after what was sent later."""
        host.link.lingering = self._chance.choice([0.1, 0.5, 1.0])
        self._tell(f"{host.name}: {host.link.lingering:.0%} of all requests are held up")

        def heal() -> None:
            host.link.lingering = 0.0

        return heal

    def _stall(self, host: Host) -> None:
        """The connection of the pings is dead, and nobody says so. No excuse: there is a second one."""
        self._tell(f"{host.name}: the stream of its pings is dead")
        host.link.stall_pings()

    def _slow(self, host: Host) -> Callable[[], None]:
        host.link.slowness = self._chance.choice([10.0, 100.0, 800.0])
        self._tell(f"{host.name}: etcd is {host.link.slowness:g} times as far")

        def heal() -> None:
            host.link.slowness = 1.0

        return heal

    def _fade(self, host: Host) -> Callable[[], None]:
        """First every answer is late, so that several pings are open; then nothing comes."""
        host.link.slowness = 800.0
        self._tell(f"{host.name}: etcd is far, and then gone")
        cut = of_nobody(self._cut, host, delay_s=self._chance.uniform(2.0, 5.0))

        def heal() -> None:
            cut.cancel()
            self._tell(f"{host.name} is connected again")
            host.link.slowness, host.link.is_cut = 1.0, False

        return heal

    def _reset_connections(self, host: Host) -> None:
        self._tell(f"{host.name}: connections are reset")
        host.link.break_connections()

    def _jump_clock(self, host: Host) -> None:
        by_s = self._chance.choice([-3600.0, -5.0, 5.0, 3600.0])
        self._tell(f"{host.name}: the wall clock jumps by {by_s:g} s")
        host.wall_offset[0] += by_s

    def _lose_leader(self, _host: Host) -> None:
        if not self._cluster.has_leader:
            return
        self._tell("etcd has no leader")
        for host in self._hosts:
            self._disturb(host, 1)
        self._cluster.lose_leader()
        of_nobody(self._elect, delay_s=self._chance.uniform(0.3, 2.5))

    def _elect(self) -> None:
        if not self._cluster.has_leader:
            self._tell("etcd has a leader again")
            self._cluster.elect()
        for host in self._hosts:
            self._disturb(host, -1)

    def _compact(self, _host: Host) -> None:
        self._tell("etcd is compacted")
        self._cluster.store.compact(self._cluster.store.revision)

    def _drain(self, host: Host) -> Callable[[], None]:
        """An operator's, and not a disturbance: a cancel there is obeyed as ever."""
        let_finish = self._chance.random() < 0.5
        self._tell(f"{host.name} is drained{', and finishes' if let_finish else ''}")
        self._write(Put(keys.drained_key(host.id), cluster_codec.encode_drain(Drain(EPOCH, let_finish))))

        def undo() -> None:
            self._tell(f"{host.name} is drained no more")
            self._write(Delete(keys.drained_key(host.id)))

        return undo

    def _delete_key(self, host: Host) -> None:
        """Somebody else deletes the key of a node that lives, which ends its incarnation whatever the pings say. At
        once, or soon after the next submit: while a claim is on its way, and before the news of it is there."""
        if self._chance.random() < 0.5:
            self._delete_now(host)
        else:
            self._doomed.append(host)

    def _changed(self, change: Change) -> None:
        """As etcd's listener."""
        queued = keys.queued()
        if self._doomed and any(event.kv.key.startswith(queued.key) and not event.is_delete for event in change.events):
            doomed, self._doomed = self._doomed, []
            for host in doomed:
                of_nobody(self._delete_now, host, delay_s=host.link.distance * self._chance.uniform(0.0, CLAIM_S))

    def _delete_now(self, host: Host) -> None:
        key = keys.node(host.node_id) if host.is_up and host.node_id else b""
        if not any(kv.key == key for kv in self._cluster.store.read_all()):
            return
        self._tell(f"{host.name}: the key of its node is deleted")
        self._promises.key_deleted(host, host.node_id)
        host.disturb(1)
        self._write(Delete(key))
        host.disturb(-1)

    def _write(self, operation: Put | Delete) -> None:
        """By somebody who reaches etcd."""
        store = self._cluster.store
        if store.has_no_space_alarm:
            store.disarm()
        store.transact(Txn(success=(operation,)), monotonic())

    def _fill_up(self, _host: Host) -> Callable[[], None]:
        self._tell("etcd has no space")
        self._cluster.store.has_no_space_alarm = True
        for host in self._hosts:
            self._disturb(host, 1)

        def heal() -> None:
            self._tell("etcd has space again")
            self._cluster.store.disarm()
            for host in self._hosts:
                self._disturb(host, -1)

        return heal
