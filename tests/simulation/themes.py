"""Focused worlds: two of three have a theme, so that what must meet for a rare interleaving meets often.

In a world of everything each kind of trouble is one of twenty, and three of a kind at the right moments hardly ever
come together. A theme names its faults, how long they last, and what the tasks of its world are like; everything else
is drawn as ever. Themes take turns by the seed: of eighteen worlds in a row each theme has one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """What one kind of world is about."""

    name: str
    #: Names of `Faults.kinds`; what stands here twice is drawn twice as often.
    faults: tuple[str, ...]
    counts: tuple[int, ...] = (8, 12)
    #: How long a fault lasts at most, in seconds.
    lengths_s: tuple[float, ...] = (3.0, 7.0, 14.0)
    hosts: tuple[int, ...] = (3, 4)
    #: Of etcd, in usual distances; empty: as in any world.
    distances: tuple[float, ...] = ()
    tasks: tuple[int, ...] = (10, 25)
    #: How long the commands take at most, in seconds.
    durations_s: tuple[float, ...] = (0.3, 2.0, 8.0, 20.0)
    is_burst: bool = False
    #: Share of the tasks that may be run only once, and of those that somebody cancels.
    once: float = 0.15
    canceled: float = 0.3
    #: Share of what a node that is gone has left that somebody cancels then.
    canceled_orphans: float = 0.0
    #: Share of what is claimed that somebody cancels while it runs.
    canceled_running: float = 0.0
    #: Whether the cluster as such is left alone (`upheavals.py`).
    is_settled: bool = False
    #: Two of the nodes share a machine.
    on_one_machine: bool = False


THEMES = (
    Theme(
        "requests that are late or not answered, and deaths",
        ("lose writes' answers", "lose answers", "linger", "linger", "kill node", "kill node", "kill node"),
        lengths_s=(7.0, 14.0),
        tasks=(25,),
    ),
    Theme(
        "spawners that die, and two nodes on one machine",
        ("kill spawner", "kill spawner", "kill spawner", "leave behind", "leave behind", "kill node", "stop node"),
        counts=(6, 10),
        lengths_s=(0.7, 3.0),
        durations_s=(2.0, 8.0, 20.0),
        tasks=(10,),
        once=0.4,
        canceled=0.1,
        on_one_machine=True,
    ),
    Theme(
        "etcd is far, and then gone",
        ("fade",),
        counts=(3, 6),
        lengths_s=(20.0,),
        hosts=(4,),
        distances=(1.0,),
        tasks=(5,),
        durations_s=(40.0,),
        is_burst=True,
        canceled=0.1,
        is_settled=True,
    ),
    Theme(
        "processes that stand still together",
        ("pause both", "pause both", "pause both", "pause spawner", "pause node"),
        counts=(4, 6),
        lengths_s=(14.0, 20.0),
        hosts=(4,),
        tasks=(25,),
        durations_s=(2.0, 8.0),
        canceled=0.1,
        is_settled=True,
    ),
    Theme(
        "an etcd that is full or silent, and a queue",
        ("fill up", "fill up", "lose answers", "lose writes' answers", "lose leader", "compact"),
        counts=(2, 4),
        lengths_s=(3.0, 7.0),
        hosts=(1, 2),
        tasks=(25,),
        durations_s=(2.0, 8.0),
        is_settled=True,
    ),
    Theme(
        "drains, stops and deleted keys",
        (*["drain"] * 3, *["stop node"] * 4, "stop stuck", *["delete key"] * 2),
        counts=(2, 4),
        lengths_s=(7.0, 14.0),
        hosts=(1, 2, 3),
        durations_s=(8.0, 20.0),
        canceled=0.1,
        is_settled=True,
    ),
    Theme(
        "a crowd, far from etcd",
        ("jump clock", "reset connections", "compact", "kill node"),
        counts=(0, 2),
        distances=(20.0, 20.0, 50.0),
        tasks=(25, 50),
        durations_s=(0.05, 0.3, 2.0),
        is_burst=True,
    ),
    Theme(
        "deaths and drains far from etcd, and cancels of what they leave",
        ("kill node", "kill node", "kill node", "drain", "linger", "delete key", "delete key", "delete key"),
        counts=(6, 10),
        lengths_s=(0.7, 3.0, 7.0),
        hosts=(1, 2, 3, 4),
        distances=(20.0, 50.0),
        tasks=(25,),
        durations_s=(0.3, 2.0, 8.0, 20.0),
        canceled=0.1,
        canceled_orphans=1.0,
        is_settled=True,
    ),
    Theme(
        "reads that are not answered, and cancels of what runs",
        ("lose reads' answers", "lose reads' answers", "compact", "cut"),
        counts=(4, 6),
        lengths_s=(14.0,),
        hosts=(1, 2),
        tasks=(10,),
        durations_s=(60.0,),
        is_burst=True,
        canceled=0.0,
        canceled_running=0.7,
        is_settled=True,
    ),
    Theme(
        "short tasks by the dozen",
        ("compact", "reset connections", "pause spawner", "fill up"),
        counts=(0, 1),
        hosts=(1, 2),
        tasks=(50,),
        durations_s=(0.01, 0.02, 0.05, 0.1, 4.0),
        is_burst=True,
        canceled=0.1,
        is_settled=True,
    ),
    Theme(
        "hardly anything happens",
        ("jump clock", "compact", "stall"),
        counts=(0, 1),
        tasks=(5, 10),
        durations_s=(0.3, 2.0),
        canceled=0.1,
        is_settled=True,
    ),
)


def theme_of(seed: int) -> Theme | None:
    """None: a world of everything."""
    turn, place = divmod(seed, 3)
    return None if place == 0 else THEMES[(2 * turn + place - 1) % len(THEMES)]
