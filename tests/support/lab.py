"""A whole cluster on one machine: real nodes, each in a place of a network of its own, to be hurt and healed.

Theory. Everything that can fail alone in the field can fail alone here: a node process, its etcd and its spawner (by
signal), its cable and each way of each pair (`examples/cluster/network.py`). What watches stays outside of the faults:
the tests talk to the nodes by their unix sockets, which no cut touches, the witness of the tasks (`beats.py`) is a
process of its own, and the history (`history.py`) is judged afterwards, from etcd itself.

`Lab.heal` brings a lab back to rest, whatever a test did to it: it is what makes one cluster good for many tests.
A laboratory whose process was killed goes by itself, up to its directory, which the next one removes: its name carries
the pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from etcd.binary import find_etcd
from examples.cluster.network import Network, find_lack
from pilfer import PilferError, TaskSpec
from pilfer.types import NodeView
from tests.support import disks
from tests.support.beats import Witness
from tests.support.lab_node import API_PORT, PARTS, LabNode
from tests.support.node_process import require_node
from tests.support.require import require
from tests.support.wait import wait_until_sync

#: Of each node, unless a test says otherwise: more than the machine has, since most tasks here only beat.
CPU = 4
MEMORY = "256M"
LEASE_TTL_S = 5.0
#: A cluster grows by one voter in about 5 s (etcd wants its members connected for so long).
GROW_TIMEOUT_S = 60.0
#: The last voters find no quorum any more when they give back: each has its time limits.
STOP_TIMEOUT_S = 60.0
LEADER_TIMEOUT_S = 60.0
_PREFIX = "pilfer-lab-"
_TOKEN_TTL_S = 3600.0

__all__ = ["API_PORT", "CPU", "LEASE_TTL_S", "MEMORY", "PARTS", "Lab", "LabNode", "laboratory", "require_lab"]


def require_lab() -> None:
    """Skips where this machine cannot run a laboratory."""
    require_node()
    lack = find_lack()
    require("isolation", is_there=lack is None, reason=lack or "")


class Lab:
    """The network, the witness and the nodes. Made by `laboratory`."""

    def __init__(self, directory: Path, network: Network, witness: Witness, *, has_disks: bool = False) -> None:
        self.directory = directory
        self.network = network
        self.witness = witness
        #: Those of the cluster. Never changed in place: other threads may be going through it.
        self.nodes: dict[str, LabNode] = {}
        #: Every machine that was ever added, in the cluster or not.
        self.machines: list[LabNode] = []
        #: Host ids of data directories that are lost.
        self.emptied_hosts: set[str] = set()
        self._has_disks = has_disks
        self._token, self._token_until = "", 0.0
        #: Acknowledged submits, for the judgement at the end.
        self.submitted: list[str] = []

    # Nodes

    def add(self, name: str, *flags: str, cpu: float = CPU) -> LabNode:
        """A node, not started. The first one founds the cluster."""
        place = self.network.add(name)
        more = ["--cpu", f"{cpu:g}", "--memory", MEMORY, "--lease-ttl", f"{LEASE_TTL_S:g}s"]
        more += ["--share", str(self.witness.directory), "--compaction-interval", "7d"]
        data_dir, disk = self.directory / name, None
        if self._has_disks:
            disk = disks.Disk(self.directory / f"{name}.disk")
            data_dir = disk.path / "node"
        node = LabNode(place, data_dir, *more, *flags)
        node.disk, node.log = disk, self.directory / f"{name}.log"
        self.machines.append(node)
        self.take_in(node)
        return node

    def take_in(self, node: LabNode) -> None:
        """It is one of the cluster from now on (where it starts), and is told of the others."""
        node.peers = tuple(other.address_in_lab for other in self.nodes.values() if other is not node)
        self.nodes = {**self.nodes, node.name: node}

    def let_go(self, node: LabNode) -> None:
        """It is not one of the cluster any more."""
        self.nodes = {name: other for name, other in self.nodes.items() if other is not node}

    def begin(self, node: LabNode) -> None:
        """Starts it, with a token where it does not know its cluster yet, and waits for nothing."""
        needs_token = bool(node.peers) and not node.has_joined
        node.environment["PILFER_JOIN_TOKEN"] = self.token() if needs_token else ""
        node.begin()

    def wipe(self, node: LabNode) -> None:
        """Its machine goes off, and its data directory is lost."""
        host_id = node.wipe()
        if host_id:
            self.emptied_hosts.add(host_id)

    def grow(self, *names: str, cpu: float = CPU, voters: int | None = None, flags: Sequence[str] = ()) -> None:
        """Adds nodes and starts them, all newcomers at once; returns when they are ready and so many vote."""
        for name in names:
            self.add(name, *flags, cpu=cpu)
        starting = [self.nodes[name] for name in names]
        if not starting[0].peers:
            starting[0].start()
            starting = starting[1:]
        for node in starting:
            self.begin(node)
        for node in starting:
            node.wait_serving()
        self.wait_ready()
        if voters is not None:
            self.wait_voters(voters)

    @property
    def first(self) -> LabNode:
        return next(iter(self.nodes.values()))

    def host_ids(self) -> set[str]:
        """Every host id that there ever was."""
        there = (node for node in self.machines if (node.data_dir / "host_id").exists())
        return self.emptied_hosts | {node.host_id for node in there}

    def token(self) -> str:
        """A token that is good for some time yet."""
        if time.monotonic() > self._token_until:
            self._token, self._token_until = self.new_token(), time.monotonic() + _TOKEN_TTL_S / 2
        return self._token

    def forget_token(self) -> None:
        """The authority that signed it is no more."""
        self._token_until = 0.0

    def new_token(self) -> str:
        """From the first that gives one. Raises AssertionError."""
        refusals: list[str] = []
        for node in self.up():
            try:
                with node.client(patience_s=2.0, timeout_s=5.0) as client:
                    return client.create_token(ttl_s=_TOKEN_TTL_S).text
            except (PilferError, OSError) as error:
                refusals.append(str(error))
        raise AssertionError(f"no node gives a token: {refusals}")

    def up(self) -> list[LabNode]:
        """The nodes whose process runs."""
        return [node for node in self.nodes.values() if node.is_up]

    def any_node(self, *, but: Iterable[LabNode] = ()) -> LabNode:
        """One that runs and is none of these."""
        left_out = list(but)
        return next(node for node in self.up() if node not in left_out)

    def node_of(self, node_id: str) -> LabNode:
        """By the id of its incarnation, as a task's record tells it."""
        host_id = next((view.host_id for view in self.views() if view.id == node_id), None)
        found = next((node for node in self.nodes.values() if node.host_id == host_id), None)
        assert found is not None, f"no living node has the id {node_id}"
        return found

    def views(self, through: LabNode | None = None) -> Sequence[NodeView]:
        """The nodes as one of them lists them."""
        with (through or self.any_node()).client() as client:
            return client.nodes()

    def wait_ready(self, count: int | None = None, *, timeout_s: float = 40.0) -> None:
        """So many nodes (default: all that run) are ready, as each of them sees it."""
        wanted = len(self.up()) if count is None else count
        seen: dict[str, list[str]] = {}

        def all_ready() -> bool:
            for node in self.up():
                seen[node.name] = self._states_seen_by(node)
            return all(states.count("ready") == wanted for states in seen.values())

        try:
            wait_until_sync(all_ready, timeout_s, what=f"{wanted} nodes are ready", every_s=0.1)
        except AssertionError as error:
            tails = "\n".join(f"--- {node.name}\n{node.tail(15)}" for node in self.nodes.values() if node.log.exists())
            raise AssertionError(f"{error}; seen: {seen}\n{tails}") from None

    def is_whole(self) -> bool:
        """Whether all nodes of the cluster are ready, as each of them sees it, and etcd has all its members."""
        nodes = self.nodes.values()
        # One that is stopping yet looks ready until its lease is revoked.
        if not all(node.is_up and not node.is_stopping for node in nodes):
            return False
        are_ready = all(self._states_seen_by(node).count("ready") == len(nodes) for node in nodes)
        return are_ready and self._is_etcd_whole()

    def states(self) -> dict[str, list[str]]:
        """What each node says of all."""
        return {node.name: self._states_seen_by(node) for node in self.up()}

    @staticmethod
    def _states_seen_by(node: LabNode) -> list[str]:
        try:
            with node.client(patience_s=0.0) as client:
                return [view.state for view in client.nodes()]
        except (PilferError, OSError) as error:
            return [str(error)]

    def wait_voters(self, count: int, *, timeout_s: float = GROW_TIMEOUT_S) -> None:
        """etcd has so many members with a vote, and none besides."""
        wait_until_sync(
            lambda: (roles := self.roles()).count("voter") == count and "learner" not in roles,
            timeout_s,
            what=f"{count} voters",
            every_s=0.2,
        )

    def roles(self) -> list[str]:
        try:
            return [view.role for view in self.views()]
        except (PilferError, StopIteration):
            return []

    # etcd

    def voters(self) -> list[LabNode]:
        """Nodes whose own etcd runs."""
        return [node for node in self.up() if node.etcd_port is not None]

    def find_leader(self) -> LabNode | None:
        """The node whose etcd leads, as every member says; None while they do not agree, or one does not answer."""
        statuses = {node.name: self._status(node) for node in self.voters()}
        # Without a leader that it knows of, a member leaves the field out.
        leaders = {status.get("leader") if status else None for status in statuses.values()}
        if len(leaders) != 1 or None in leaders:
            return None
        (leader,) = leaders
        return next(
            (self.nodes[name] for name, s in statuses.items() if s and s["header"]["member_id"] == leader), None
        )

    def voting_hosts(self) -> set[str]:
        """Host ids of etcd's voters, as a voter lists its members; empty where none answers."""
        for node in self.voters():
            done = self.etcdctl(node, "member", "list", "-w", "json")
            if done.returncode == 0:
                return {member["name"] for member in json.loads(done.stdout)["members"] if not member.get("isLearner")}
        return set()

    def get_leader(self) -> LabNode:
        """The same, waited for."""
        found: list[LabNode] = []

        def find() -> bool:
            leader = self.find_leader()
            found.extend([leader] if leader is not None else [])
            return bool(found)

        wait_until_sync(find, LEADER_TIMEOUT_S, what="etcd has a leader", every_s=0.1)
        return found[0]

    def get_follower(self) -> LabNode:
        """A voter that does not lead."""
        leader = self.get_leader()
        return next(node for node in self.voters() if node is not leader)

    def move_leader(self, to: LabNode) -> None:
        """Hands etcd's leadership on, in order."""
        self.get_leader()
        assert self.find_move_leader(to), f"the leadership does not go to {to.name}"

    def find_move_leader(self, to: LabNode) -> bool:
        """The same where it is possible now; whether it was."""
        status, leader = self._status(to), self.find_leader()
        if status is None or leader is None:
            return False
        return self.etcdctl(leader, "move-leader", f"{status['header']['member_id']:x}").returncode == 0

    def etcdctl(self, node: LabNode, *args: str) -> subprocess.CompletedProcess[str]:
        """Against the etcd of this node, in its place and with its certificate."""
        return node.run(*self.etcdctl_command(node, *args))

    @staticmethod
    def etcdctl_command(node: LabNode, *args: str) -> list[str]:
        """For `LabNode.run`."""
        pki = node.data_dir / "pki"
        return [
            str(Path(find_etcd(None).path).with_name("etcdctl")),
            f"--endpoints=https://127.0.0.1:{node.etcd_port}",
            f"--cacert={pki}/ca.crt", f"--cert={pki}/node.crt", f"--key={pki}/node.key",
            "--command-timeout=2s",
            *args,
        ]  # fmt: skip

    def revision(self, node: LabNode) -> int | None:
        """The newest that the etcd of this node has; None where it does not answer."""
        status = self._status(node)
        return int(status["header"]["revision"]) if status is not None else None

    def _status(self, node: LabNode) -> dict[str, Any] | None:
        done = self.etcdctl(node, "endpoint", "status", "-w", "json")
        if done.returncode:
            return None
        (answer,) = json.loads(done.stdout)
        status: dict[str, Any] = answer["Status"]
        return status

    # Work

    def submit(self, *specs: TaskSpec, through: LabNode | None = None) -> list[str]:
        """Ids; remembered for the judgement."""
        with (through or self.any_node()).client(patience_s=20.0) as client:
            ids = list(client.submit_many(specs))
        self.submitted += ids
        return ids

    def spread(self, per_node: int = 2, *, duration_s: float = 120.0) -> dict[str, list[str]]:
        """Beating tasks, so many on each node that runs: ids by the name of the node. Every node is filled up, and what
        is too many is canceled, so that the others have room for what a lost one leaves behind."""
        nodes = self.up()
        ids = self.submit(*[self.witness.task(duration_s, cpu=1.0)] * (CPU * len(nodes)))
        self.witness.wait_runs(ids, 1)
        placed: dict[str, list[str]] = {node.name: [] for node in nodes}
        surplus: list[str] = []
        for task_id, name in self.places_of(ids).items():
            (placed[name] if len(placed[name]) < per_node else surplus).append(task_id)
        with self.any_node().client() as client:
            client.cancel(surplus)
            client.wait(surplus, timeout_s=30.0)
        assert all(len(ids) == per_node for ids in placed.values()), placed
        return placed

    def wait_moved(self, ids: Iterable[str], timeout_s: float = 30.0) -> float:
        """When the last of these tasks began its second run, by the witness's clock (that of time.monotonic)."""
        return max(run.first_sent for run in self.witness.wait_runs(ids, 2, timeout_s))

    def places_of(self, ids: Iterable[str]) -> dict[str, str]:
        """For each of these tasks the name of the node that runs, or last ran it."""
        names = {node.host_id: node.name for node in self.nodes.values() if (node.data_dir / "host_id").exists()}
        with self.any_node().client() as client:
            return {task.id: names[task.attempts[-1].host_id] for task in client.status(list(ids)) if task.attempts}

    def clear(self) -> None:
        """Cancels every task that has not ended."""
        with self.any_node().client(patience_s=20.0) as client:
            ids = [task.id for status in ("queued", "running") for task in client.list(status=status)]
            if ids:
                client.cancel(ids)
                client.wait(ids, timeout_s=60.0)

    def judge(self, *, expect_ended: bool = False) -> dict[str, Any]:
        """What the history checker says of everything since the beginning. Raises AssertionError for a flaw."""
        node = next(iter(self.voters()))
        done = node.run(
            sys.executable, "-m", "tests.support.history",
            "--endpoint", f"127.0.0.1:{node.etcd_port}", "--pki", str(node.data_dir / "pki"),
            *(["--expect-ended"] if expect_ended else []),
            stdin="\n".join(self.submitted), timeout_s=90.0,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stdout + done.stderr
        judged: dict[str, Any] = json.loads(done.stdout)
        assert not judged["flaws"], "\n".join(map(str, judged["flaws"]))
        return judged

    # Back to rest

    def heal(self, *, timeout_s: float = 60.0) -> None:
        """Undoes every fault: cuts, pauses, full disks, dead processes. Returns when all nodes are ready, and etcd is
        whole."""
        self.unhurt()
        dead = [node for node in self.nodes.values() if not node.is_up]
        for node in dead:
            self.begin(node)
        for node in dead:
            node.wait_serving()
        self.wait_ready(timeout_s=timeout_s)
        wait_until_sync(self._is_etcd_whole, timeout_s, what="every voter's etcd answers", every_s=0.1)

    def _is_etcd_whole(self) -> bool:
        """A supervised etcd that died again and again is started again after a while only."""
        if self.find_leader() is None:
            return False
        voting = self.voting_hosts()
        return bool(voting) and voting <= {node.host_id for node in self.voters()}

    def unhurt(self) -> None:
        """Undoes what was done to living processes, disks and cables; who is dead stays so."""
        for node in self.machines:
            node.resume()
            if node.disk is not None:
                node.disk.free()
        self.network.heal()

    def tidy(self) -> None:
        """What nodes put aside for a person to delete (docs/operations.md): the disks here are small."""
        for node in self.nodes.values():
            for pattern in ("data.before-*", "data.removed-*"):
                for aside in (node.data_dir / "etcd").glob(pattern):
                    shutil.rmtree(aside, ignore_errors=True)

    def end(self) -> None:
        """Stops every node; nothing of them is left. What does not stop in time is killed, and an error in the end."""
        self.unhurt()
        errors: list[str] = []
        running = [node for node in self.machines if node.is_up]
        # All at once, and each once: a second signal means haste.
        for node in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGTERM)
        for node in running:
            try:
                node.process.wait(STOP_TIMEOUT_S) if node.process else None
            except subprocess.TimeoutExpired:
                errors.append(f"{node.name} did not stop within {STOP_TIMEOUT_S} s")
                node.power_off()
        for node in self.machines:
            node.end()
            if (node.data_dir / "host_id").exists():
                wait_until_sync(partial(_is_quiet, node), what=f"no task is left of {node.name}")
            if node.disk is not None:
                node.disk.end()
        assert not errors, "; ".join(errors)


def _is_quiet(node: LabNode) -> bool:
    return not node.task_processes()


@contextlib.contextmanager
def laboratory(*, has_disks: bool = False) -> Iterator[Lab]:
    """An empty lab; everything of it is gone afterwards, and what a killed run left behind now. has_disks: each node
    gets a disk of limited size."""
    require_lab()
    if has_disks:
        lack = disks.find_lack()
        require("isolation", is_there=lack is None, reason=lack or "")
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            disks.unmount_below(left)
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    lab: Lab | None = None
    try:
        with Network() as network, Witness(directory / "share") as witness:
            lab = Lab(directory, network, witness, has_disks=has_disks)
            try:
                yield lab
            finally:
                lab.end()
    except KeyboardInterrupt:
        raise
    except BaseException:
        for node in lab.machines if lab else ():
            print(f"--- {node.name}\n{node.tail() if node.log.exists() else ''}")
        raise
    finally:
        disks.unmount_below(directory)
        shutil.rmtree(directory, ignore_errors=True)
