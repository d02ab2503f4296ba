"""Each fault of chaos alone: that it does what it says, and is undone. One lab under load for all of them, judged at
the end as a run of chaos is."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.asking import ask
from tests.chaos.faults import Wound
from tests.chaos.run import FLAGS, Chaos
from tests.support.lab import Lab, laboratory
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    with laboratory(has_disks=True) as lab:
        lab.grow("a", "b", "c", voters=3, flags=FLAGS)
        chaos = Chaos(lab, 1, print)
        chaos.load.start()
        chaos.checks.start()
        yield chaos
        chaos.heal()
        chaos.load.stop()
        chaos.wait_all_ended()
        assert chaos.power.flaws + chaos.members.flaws + chaos.checks.finish() == []


@pytest.fixture
def lab(chaos: Chaos) -> Iterator[Lab]:
    yield chaos.lab
    chaos.heal()
    assert chaos.checks.flaws_so_far() == []


def begun(chaos: Chaos, kind: str, seed: int = 1) -> Wound:
    wound = chaos.faults.begin(kind, random.Random(seed))
    assert wound is not None
    return wound


def undone(chaos: Chaos, wound: Wound) -> None:
    assert wound.undo is not None
    wound.undo()


def write(path: Path) -> int:
    """The error number of an attempt to write some blocks; 0 where it succeeds."""
    try:
        with path.open("wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or -1
    finally:
        path.unlink(missing_ok=True)
    return 0


def test_a_full_disk_is_full_until_it_is_freed(chaos: Chaos, lab: Lab) -> None:
    wound = begun(chaos, "fill the disk")
    full = [disk for node in lab.nodes.values() if (disk := node.disk) is not None and disk.is_filled]
    assert full
    assert all(disk.path.name in wound.words for disk in full)
    assert {write(disk.path / "probe") for disk in full} == {errno.ENOSPC}
    assert chaos.load.disk_was_full
    undone(chaos, wound)
    assert {write(disk.path / "probe") for disk in full} == {0}


def test_power_off_ends_everything_of_a_machine_and_it_comes_back(chaos: Chaos, lab: Lab) -> None:
    wound = begun(chaos, "power off")
    off = [node for node in lab.nodes.values() if not node.is_up]
    assert off
    assert all(not node.task_processes() for node in off)
    chaos.power.tick()
    assert all(not node.is_up for node in off)
    undone(chaos, wound)
    chaos.power.tick()
    assert len(lab.up()) == 3


def test_a_drained_node_is_drained_until_it_is_undone(chaos: Chaos, lab: Lab) -> None:
    def drained() -> list[str]:
        views = ask(lab, random.Random(1), lambda client: client.nodes()) or []
        return [view.name for view in views if view.state in {"draining", "drained"}]

    wound = begun(chaos, "drain")
    wait_until_sync(lambda: len(drained()) == 1, what="it is drained")
    assert drained()[0] in wound.words
    assert chaos.faults.undrain(random.Random(1))
    assert len(drained()) == 1
    undone(chaos, wound)
    wait_until_sync(lambda: chaos.faults.undrain(random.Random(1)), what="the drain is undone")
    assert drained() == []


def test_only_what_a_fault_cut_is_healed_with_it(chaos: Chaos, lab: Lab) -> None:
    first = begun(chaos, "partition", 1)
    before = {place.name: set(place.lost_to) for place in lab.network}
    second = begun(chaos, "lose", 2)
    undone(chaos, second)
    assert {place.name: set(place.lost_to) for place in lab.network} == before
    undone(chaos, first)
    assert not any(place.lost_to for place in lab.network)


@pytest.mark.parametrize(
    "kind", ["back up", *(pytest.param(k, marks=LONG) for k in ("fill the quota", "recover", "restore"))]
)
def test_an_operator(chaos: Chaos, lab: Lab, kind: str) -> None:
    """Each raises for what must not be; `fill the quota` waits until it has healed."""
    chaos.operator.do(kind)


@pytest.mark.long
def test_hosts_come_and_go(chaos: Chaos, lab: Lab) -> None:
    before = {name: node.host_id for name, node in lab.nodes.items()}
    for kind, count in (("join", 4), ("join", 5), ("lose a disk", 5), ("leave", 5), ("leave for good", 4)):
        # 7 chooses one of the first three, where it chooses among five.
        assert chaos.members.begin(kind, random.Random(7)), kind
        chaos.heal()
        assert len(lab.nodes) == count
    # It lost its disk, and came back as another host; so it did after it had left in order.
    (name,) = {name for name, host_id in before.items() if lab.nodes[name].host_id != host_id}
    assert before[name] in lab.emptied_hosts
    with lab.any_node().client() as client:
        assert {view.host_id for view in client.nodes()} == {node.host_id for node in lab.nodes.values()}
    assert chaos.members.flaws == []
