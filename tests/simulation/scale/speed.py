"""How fast the simulated etcd is: numbers, and where each is from.

Sources: *measured* are this project's own measurements of etcd 3.5.30 on a machine of 2 cores that it shared with its
clients, so they are a floor; *assumed* is what no measurement tells. A voter's apply loop is one thread; the rest of
its cores push news and answer reads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one cluster of voters. Seconds of one core unless said otherwise."""

    #: Assumed: three voters of four cores each, nodes spread evenly over them.
    voters: int = 3
    cores: int = 4
    #: Assumed: half a round trip in one data centre, drawn anew each time.
    half_trip_s: tuple[float, float] = (0.0001, 0.0004)
    #: Assumed: fdatasync of a cloud disk (1 to 5 ms; measured here: 0.16 ms) and a follower's answer. Whatever waits
    #: is synced together.
    sync_s: float = 0.0015
    #: Measured: 11,000 claims/s one by one, 32,200 in hundreds; two equations.
    write_rpc_s: float = 60e-6
    write_item_s: float = 30e-6
    #: Assumed: an RPC as a write's but for the log, a record a third of a claim.
    read_rpc_s: float = 40e-6
    read_item_s: float = 10e-6
    #: Measured: 150,000 keys listed in 235 ms, counted in 16 ms (a limit does not spare the counting).
    listed_key_s: float = 1.5e-6
    counted_key_s: float = 0.1e-6
    #: Assumed: as a message and its answer.
    ping_s: float = 10e-6
    #: Measured, an upper bound (the one client's decoding is in it): 7,800 messages/s of one event with one watcher
    #: and 6,700 with eight; 58,000 events/s in hundreds and 50,000.
    push_message_s: float = 3e-6
    push_event_s: float = 0.4e-6
    #: From etcd's source (chanBufLen): a watcher that is further behind is brought up by one message with all.
    behind_max: int = 128

    @property
    def other_cores(self) -> int:
        """Those of a voter that do not apply."""
        return max(1, self.cores - 1)
