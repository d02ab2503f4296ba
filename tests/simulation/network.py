"""The links between hosts and etcd, and what befalls etcd as a whole."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.simulation.etcd import SimEtcd
from tests.simulation.loop import of_nobody
from tests.support.fake_store import FakeStore

#: From the beginning of a one-way cut until the connections that stood are given up: grpc's keepalive, as
#: `etcd/endpoints.py` sets it and as it was measured.
KEEPALIVE_S = (7.0, 8.0)

#: From the end of a cut until watches are told what they missed: often after what was under way when it began.
NEWS_S = (0.0, 0.04)

#: The longest that a member holds a request up, before it passes it on after all.
LINGER_MAX_S = 6.0


class Cluster:
    """etcd, as all hosts see it: its data, whether it has a leader, and its clock."""

    #: How often leases are looked at; etcd does so each 500 ms.
    TICK_S = 0.1

    def __init__(self, now: Callable[[], float]) -> None:
        self.store = FakeStore()
        self.links: list[Link] = []
        self.has_leader = True
        self._now = now
        self._tick()

    def _tick(self) -> None:
        if self.has_leader:
            self.store.expire(self._now())
        of_nobody(self._tick, delay_s=self.TICK_S)

    def lose_leader(self) -> None:
        """Nobody is answered until there is another one."""
        self.has_leader = False
        for link in self.links:
            link.refresh()

    def elect(self) -> None:
        """A new leader knows of no ping: every lease begins anew. Not without a quorum."""
        if not self.store.membership.has_quorum:
            return
        for lease in self.store._leases.values():
            lease.expires_at = self._now() + lease.ttl_s
        self.has_leader = True
        for link in self.links:
            link.refresh()


class Link:
    """One host's way to etcd."""

    def __init__(self, cluster: Cluster, chance: Random) -> None:
        self._cluster = cluster
        self._chance = chance
        self._is_cut = False
        #: What is sent from here does not arrive, while what is sent to here does; and the other way round.
        self._is_mute = False
        self._is_deaf = False
        #: Of the time that each way takes: where the host stands, and what befalls it.
        self.distance = 1.0
        self.slowness = 1.0
        #: Of writes and reads alike: the answer is lost, the request was applied.
        self.loss = 0.0
        #: The same of writes alone.
        self.loss_of_writes = 0.0
        #: The same of reads alone.
        self.loss_of_reads = 0.0
        #: Its clients look for another member: so many times.
        self._rerouting = 0
        #: Of requests alone: held up on their way there.
        self.lingering = 0.0
        #: One-way cuts and their ends so far.
        self._cuts = 0
        #: What waits at the cut, in order.
        self.held: list[Callable[[], None]] = []
        self._clients: list[SimEtcd] = []
        cluster.links.append(self)

    @property
    def store(self) -> FakeStore:
        return self._cluster.store

    @property
    def carries(self) -> bool:
        """Whether anything gets through."""
        return not self._is_cut and not self._rerouting and self._cluster.has_leader

    @property
    def reaches_others(self) -> bool:
        """Whether this host and the others hear each other."""
        return not (self._is_cut or self._is_deaf or self._is_mute)

    @property
    def carries_up(self) -> bool:
        """Whether what is sent from here arrives."""
        return self.carries and not self._is_mute

    @property
    def carries_down(self) -> bool:
        """Whether what is sent to here arrives."""
        return self.carries and not self._is_deaf

    @property
    def is_cut(self) -> bool:
        return self._is_cut

    @is_cut.setter
    def is_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        self.refresh()

    def cut_one_way(self, *, is_deaf: bool) -> None:
        """Only what is sent to here is cut (`is_deaf`), or only what is sent from here. A connection that stands goes
        on in the other direction, until the one end or the other misses the answers to its own pings (`KEEPALIVE_S`);
        a new one cannot be made."""
        self._is_deaf, self._is_mute = is_deaf, not is_deaf
        self._cuts += 1
        self.refresh()
        of_nobody(self._notice, self._cuts, delay_s=self._chance.uniform(*KEEPALIVE_S))

    def heal_one_way(self) -> None:
        self._is_deaf = self._is_mute = False
        self._cuts += 1
        self.refresh()

    def reroute(self, within_s: float, *, then: Callable[[], None]) -> None:
        """The member that its clients ask is gone; after so many seconds they ask another."""
        self._rerouting += 1
        self.break_connections()
        self.refresh()

        def found() -> None:
            self._rerouting -= 1
            self.refresh()
            then()

        of_nobody(found, delay_s=within_s)

    def _notice(self, cut: int) -> None:
        if cut == self._cuts:
            for client in self._clients:
                client.is_connected = False
            self.break_connections()
            self.refresh()

    def loses_answer(self, *, is_write: bool) -> bool:
        loss = max(self.loss, self.loss_of_writes if is_write else self.loss_of_reads)
        return loss > 0 and self._chance.random() < loss

    def lingers_s(self) -> float:
        """For how long the next request is held up."""
        return self._chance.uniform(0.3, LINGER_MAX_S) if self._chance.random() < self.lingering else 0.0

    def stall_pings(self) -> None:
        """Nothing of the lease streams that stand arrives any more, until they are given up; new ones are well."""
        for client in self._clients:
            client.stall_pings(self._chance.uniform(*KEEPALIVE_S))

    def client(self) -> SimEtcd:
        return SimEtcd(self, self._chance)

    def break_connections(self) -> None:
        """As a connection that is reset: lease streams end, watches resume."""
        for client in list(self._clients):
            client.break_streams()

    def abandon(self) -> None:
        """The process that had these clients is dead: its connections are closed by the kernel."""
        for client in self._clients:
            for watch in client.watches:
                self.store.listeners.remove(watch.wake)
            client.watches.clear()
            client.lease_streams.clear()
        # What it had sent stays on its way: the kernel sends it on.
        self._clients.clear()

    def refresh(self) -> None:
        """The cut, or etcd's leader, has changed."""
        is_whole = self.carries_up and self.carries_down
        for client in self._clients:
            client.is_connected = is_whole or client.is_connected
            if client.is_cut and client.hears:
                of_nobody(self._hear, client, delay_s=self._chance.uniform(*NEWS_S))
            else:
                client.is_cut = not client.hears
            client.connection_changed()
        if self.carries:
            held, self.held = self.held, []
            for step in held:
                of_nobody(step, delay_s=self._chance.uniform(0.0, 0.01))

    def _hear(self, client: SimEtcd) -> None:
        client.is_cut = not client.hears

    # For SimEtcd

    def add(self, client: SimEtcd) -> None:
        self._clients.append(client)
        client.is_connected = not self._is_deaf and not self._is_mute
        client.is_cut = not client.hears
        client.connection_changed()

    def remove(self, client: SimEtcd) -> None:
        if client in self._clients:
            self._clients.remove(client)


def etcd_urls(machine_id: str) -> tuple[str, str]:
    """Where a machine's etcd is: for its peers, and for clients."""
    return f"https://{machine_id}.example:1", f"https://{machine_id}.example:2"
