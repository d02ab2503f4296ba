"""The instruments themselves, before anything is proved with them: network, witness, and history of one node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.cluster.network import Network
from tests.support import disks
from tests.support.beats import Witness
from tests.support.lab import laboratory, require_lab
from tests.support.leaks import Belongings
from tests.support.require import require
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.cluster

PORT = 5005
LISTEN = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", {PORT}))
print("ready", flush=True)
while True:
    print(s.recv(100).decode(), flush=True)
"""
SEND = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for address in sys.argv[2:]:
    try:
        s.sendto(sys.argv[1].encode(), (address, {PORT}))
    except OSError as error:
        print(error)
"""


class Listeners:
    """In each place one that tells what it hears."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.processes = {
            place.name: subprocess.Popen(
                place.command(sys.executable, "-c", LISTEN), stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for place in network
        }
        for process in self.processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def heard(self) -> set[tuple[str, str]]:
        """Everybody speaks to everybody, then to itself: (who, by whom it was heard), without what is its own."""
        for place in self.network:
            others = [other.address for other in self.network if other is not place]
            subprocess.run(place.command(sys.executable, "-c", SEND, place.name, *others), check=True)
        found = set()
        for place in self.network:
            # What was sent before has arrived, or never will: there is no delay in these cables.
            subprocess.run(place.command(sys.executable, "-c", SEND, "over", "127.0.0.1"), check=True)
            pipe = self.processes[place.name].stdout
            assert pipe is not None
            while (line := pipe.readline().strip()) != "over":
                found.add((line, place.name))
        return found

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def listeners() -> Iterator[Listeners]:
    require_lab()
    with Network() as network:
        for name in "abc":
            network.add(name)
        found = Listeners(network)
        yield found
        found.end()


ALL = {(one, other) for one in "abc" for other in "abc" if one != other}


def test_everybody_is_heard_by_everybody(listeners: Listeners) -> None:
    assert listeners.heard() == ALL


def test_what_one_sends_to_another_gets_lost_one_way(listeners: Listeners) -> None:
    listeners.network.lose("a", "b")
    assert listeners.heard() == ALL - {("a", "b")}
    listeners.network.heal()
    assert listeners.heard() == ALL


def test_a_cut_between_two_leaves_the_third_alone(listeners: Listeners) -> None:
    listeners.network.cut("a", "c")
    assert listeners.heard() == ALL - {("a", "c"), ("c", "a")}
    listeners.network.heal()
    assert listeners.heard() == ALL


def test_a_pulled_cable_is_silence_both_ways(listeners: Listeners) -> None:
    listeners.network.unplug("b")
    assert listeners.heard() == {("a", "c"), ("c", "a")}
    listeners.network.plug("b")
    # As with a real cable, its carrier takes a moment (up to a second) to be back.
    wait_until_sync(lambda: listeners.heard() == ALL, what="b hears and is heard again")


def test_packets_of_a_fading_cable_get_lost_at_random_each_way(listeners: Listeners) -> None:
    lack = listeners.network.find_fade_lack()
    require("isolation", is_there=lack is None, reason=lack or "")
    # Neighbours know each other before: what is counted are packets, not questions for an address.
    wait_until_sync(lambda: listeners.heard() == ALL, what="all hear each other")
    listeners.network.fade("b", 0.5)
    rounds = [listeners.heard() for _ in range(40)]
    for way in (("a", "b"), ("b", "a")):
        # Outside of these bounds once in a million runs.
        assert 5 <= sum(way in heard for heard in rounds) <= 35
    assert all(way in heard for heard in rounds for way in (("a", "c"), ("c", "a")))
    listeners.network.heal()
    wait_until_sync(lambda: listeners.heard() == ALL, what="all hear each other again")


def test_what_was_lost_is_found_pair_by_pair(listeners: Listeners) -> None:
    listeners.network.lose("a", "b", "c")
    listeners.network.find("a", "b")
    assert listeners.heard() == ALL - {("a", "c")}
    listeners.network.find("a", "b", "c")
    assert listeners.heard() == ALL


def test_groups_are_kept_apart(listeners: Listeners) -> None:
    listeners.network.partition("ab", "c")
    assert listeners.heard() == {("a", "b"), ("b", "a")}
    listeners.network.heal()
    assert listeners.heard() == ALL


def test_the_witness_hears_an_overlap_of_real_processes(tmp_path: Path) -> None:
    """Two processes that pretend to be attempts of one task, at once: a witness that lets them pass proves nothing."""
    require_lab()
    with Witness(tmp_path / "share") as witness:

        def attempt(number: int, duration_ms: int) -> subprocess.Popen[bytes]:
            environment = {"PILFER_TASK_ID": "t", "PILFER_ATTEMPT": str(number), "PILFER_FENCE": str(number)}
            command = [str(witness.program), "task", str(witness.socket), "2000", str(duration_ms)]
            return subprocess.Popen(command, env=environment)

        first = attempt(1, 60_000)
        witness.wait_run("t", 1)
        assert witness.flaws() == []
        second = attempt(2, 0)
        assert second.wait() == 0
        count = witness.look().beats
        while witness.look().beats < count + 3:
            pass
        first.kill()
        first.wait()
        assert len(witness.flaws()) == 1
        assert witness.runs.of("t")[1].has_ended
        assert not witness.runs.of("t")[0].has_ended
        third = attempt(3, 20)
        assert third.wait() == 0
        assert len(witness.flaws()) == 1, "one after the other is no overlap"


def test_what_a_killed_laboratory_left_is_removed_by_the_next() -> None:
    """Its processes went with it; its directory carries the pid."""
    with subprocess.Popen(["true"]) as over:
        over.wait()
    temporary = Path(tempfile.gettempdir())
    left, others = temporary / f"pilfer-lab-{over.pid}-left", temporary / f"pilfer-lab-{os.getpid()}-mine"
    for directory in (left, others):
        (directory / "a").mkdir(parents=True)
    try:
        with laboratory() as lab:
            assert not left.exists()
            assert others.exists()
            assert lab.directory.exists()
        assert not lab.directory.exists()
    finally:
        shutil.rmtree(others)


def test_a_disk_is_full_and_free_and_goes_with_the_lab_even_if_that_was_killed(tmp_path: Path) -> None:
    lack = disks.find_lack()
    require("isolation", is_there=lack is None, reason=lack or "")
    disk = disks.Disk(tmp_path / "disk", 64 << 20)
    try:
        free = disk.free_bytes
        assert 32 << 20 < free < 64 << 20
        (disk.path / "before").write_bytes(bytes(1 << 20))
        disk.fill()
        assert disk.is_filled
        assert disk.free_bytes == 0
        with pytest.raises(OSError, match="No space left"):
            (disk.path / "after").write_bytes(bytes(1 << 16))
        disk.free()
        (disk.path / "after").write_bytes(bytes(1 << 20))
        assert (disk.path / "before").read_bytes() == bytes(1 << 20)
    finally:
        disks.unmount_below(tmp_path)
    assert not os.path.ismount(disk.path)
    disk.end()
    assert list(tmp_path.iterdir()) == [disk.path]


def test_one_node_in_a_lab_of_its_own_leaves_a_sound_history_and_nothing_else() -> None:
    before = Belongings.now()
    with laboratory() as lab:
        lab.grow("a")
        ids = lab.submit(*(lab.witness.task(0.2, exit_code=number % 2) for number in range(8)))
        with lab.first.client() as client:
            assert {task.status for task in client.wait(ids, timeout_s=60)} == {"complete"}
        runs = lab.witness.wait_runs(ids, 1)
        assert all(run.has_ended for run in runs)
        assert lab.witness.flaws() == []
        judged = lab.judge(expect_ended=True)
        assert judged["tasks"]["complete"] == 8
        assert judged["transitions"] == 24
    assert Belongings.now().leaked_since(before) == []
