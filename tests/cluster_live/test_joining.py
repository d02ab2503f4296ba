"""Who gets in, who does not and is told why, and who may not come back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.lab import API_PORT, CPU, MEMORY, Lab, LabNode, laboratory
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A cluster of one, to which others come."""
    with laboratory() as lab:
        lab.grow("a")
        yield lab
        lab.clear()
        lab.judge(expect_ended=True)


@contextlib.contextmanager
def stranger(lab: Lab, name: str, token: str | None, *flags: str) -> Iterator[LabNode]:
    """A node that is not in the lab's list, begun with this token; ended, and its data removed, afterwards."""
    place = lab.network[name] if name in {place.name for place in lab.network} else lab.network.add(name)
    peers = ("--peers", f"{lab.first.place.address}:{API_PORT}")
    node = LabNode(place, lab.directory / f"stranger-{name}", "--cpu", str(CPU), "--memory", MEMORY, *peers, *flags)
    node.environment["PILFER_JOIN_TOKEN"] = token or ""
    node.begin()
    try:
        yield node
    finally:
        node.end()
        shutil.rmtree(node.data_dir, ignore_errors=True)


def refusal(node: LabNode, timeout_s: float = 30.0) -> str:
    """What a node said that ended by itself without serving."""
    assert node.process is not None
    assert node.process.wait(timeout_s) != 0
    return node.tail(3)


def test_garbage_is_refused(lab: Lab) -> None:
    with stranger(lab, "x", "garbage") as node:
        assert "token" in refusal(node)


def test_a_revoked_token_is_refused(lab: Lab) -> None:
    with lab.first.client() as client:
        new = client.create_token(ttl_s=600.0)
        client.revoke_token(new.view.id)
    with stranger(lab, "x", new.text) as node:
        assert "revoked" in refusal(node)


def test_a_used_up_token_is_refused(lab: Lab) -> None:
    with lab.first.client() as client:
        token = client.create_token(ttl_s=600.0, uses=1).text
    with stranger(lab, "x", token, "--name", "first-user") as node:
        assert "serves" in node.wait_serving()
        with stranger(lab, "y", token) as other:
            assert "good for 1 host" in refusal(other)
        node.stop()
    with lab.first.client() as client:
        client.remove("first-user")


def test_a_token_of_another_cluster_is_refused(lab: Lab) -> None:
    with stranger(lab, "z", None) as other:
        # It founds its own, without peers.
        other.end()
        founder = LabNode(other.place, lab.directory / "elsewhere", "--cpu", "1", "--memory", MEMORY)
        try:
            founder.start()
            foreign = founder.cli("token", "create").stdout.strip()
        finally:
            founder.end()
    with stranger(lab, "x", foreign) as node:
        assert "cluster" in refusal(node)


def test_a_name_that_is_taken_is_refused(lab: Lab) -> None:
    with stranger(lab, "x", lab.new_token(), "--name", "a") as node:
        assert "--name" in refusal(node)


def test_unreachable_peers_are_waited_for(lab: Lab) -> None:
    """A node with peers never founds; it says what it waits for, and comes in when they are back."""
    token = lab.new_token()
    lab.network.unplug("a")
    try:
        with stranger(lab, "x", token, "--name", "late") as node:
            peer = lab.first.place.address
            wait_until_sync(lambda: peer in node.log.read_text(), what="it tells whom it waits for")
            assert node.is_up
            lab.network.heal()
            assert "serves" in node.wait_serving()
            node.stop()
    finally:
        lab.network.heal()
    with lab.first.client() as client:
        client.remove("late")


def test_a_joining_node_is_listed_and_gets_work(lab: Lab) -> None:
    ids = lab.submit(*[lab.witness.task(0.2, cpu=1.0)] * (CPU * 20))
    lab.grow("b")
    with lab.first.client() as client:
        client.wait(ids, timeout_s=90.0)
        assert {view.name: view.state for view in client.nodes() if view.state != "gone"} == {
            "a": "ready",
            "b": "ready",
        }
    assert "b" in lab.places_of(ids).values()


def test_a_copied_data_directory_is_refused(lab: Lab) -> None:
    """Two nodes of one host id, here even on one machine: the second must not take the place of the living first, nor
    end its tasks as leftovers of its own."""
    if "b" not in lab.nodes:
        lab.grow("b")
    original = lab.nodes["b"]
    placed = lab.spread(1)
    before = {view.name: view.id for view in lab.views()}
    place = lab.network.add("copy")
    copied = lab.directory / "copied"
    shutil.copytree(original.data_dir, copied, ignore=shutil.ignore_patterns("*.sock", "lock", "logs", "scratch"))
    peers = ("--peers", f"{lab.first.place.address}:{API_PORT}")
    node = LabNode(place, copied, "--cpu", str(CPU), "--memory", MEMORY, *peers)
    node.begin()
    try:
        assert "copied" in refusal(node, 60.0)
    finally:
        node.end()
    assert {view.name: view.id for view in lab.views()} == before
    for ids in placed.values():
        lab.witness.wait_beat_after(ids[0], time.monotonic())
        assert len(lab.witness.runs.of(ids[0])) == 1
    lab.clear()


def test_a_removed_node_stays_out(lab: Lab) -> None:
    if "b" not in lab.nodes:
        lab.grow("b")
    gone = lab.nodes["b"]
    living = lab.first.cli("remove", "b")
    assert living.returncode != 0
    assert "drain" in living.stderr or "stop" in living.stderr
    gone.stop()
    assert lab.first.cli("remove", "b").returncode == 0
    with lab.first.client() as client:
        assert "b" not in [view.name for view in client.nodes()]
    gone.begin()
    assert "removed" in refusal(gone)
    # Its data directory given up, it may come as somebody new.
    shutil.rmtree(gone.data_dir)
    gone.environment["PILFER_JOIN_TOKEN"] = lab.new_token()
    gone.start()
    lab.wait_ready()


def test_a_token_given_as_an_argument_is_not_seen_by_others(lab: Lab) -> None:
    token = lab.new_token()
    place = lab.network.add("argument")
    data = lab.directory / "argument"
    command = [
        *place.command(sys.executable, "-m", "node", "start", "--data-dir", str(data)),
        "--listen", f"{place.address}:{API_PORT}", "--name", "argument", "--cpu", "1", "--memory", MEMORY,
        "--peers", f"{lab.first.place.address}:{API_PORT}", "--token", token,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as node:
        try:
            assert node.stdout is not None
            assert "serves" in node.stdout.readline()
            with open(f"/proc/{node.pid}/cmdline", "rb") as arguments:  # noqa: PTH123  (a file of the kernel's)
                assert token.encode() not in arguments.read()
        finally:
            node.terminate()
            node.communicate(timeout=30.0)
    with lab.first.client() as client:
        client.remove("argument")
