"""One node of a laboratory: `node start` in a place of its own, and what can be done to it and its machine."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from etcd.ports import remembered
from examples.cluster.network import Place
from isolation import leftovers
from pilfer import PilferError
from pilfer.types import NodeView
from tests.support.disks import Disk
from tests.support.node_process import LiveNode, processes_in
from tests.support.wait import patient

API_PORT = 7400
PARTS = ("node", "etcd", "spawner")
#: Much more than a start takes: a cluster that comes up as a whole waits for its quorum.
SERVING_TIMEOUT_S = 90.0


class LabNode(LiveNode):
    """A node in a place of its own."""

    def __init__(self, place: Place, data_dir: Path, *flags: str) -> None:
        super().__init__(data_dir, "--name", place.name, *flags, prefix=place.command())
        self.place = place
        self.name = place.name
        #: Addresses that it is told to join; without any it founds a cluster.
        self.peers: tuple[str, ...] = ()
        #: Holds its data directory, where it has a disk of its own.
        self.disk: Disk | None = None
        #: Parts that are stopped by a signal.
        self._paused: list[psutil.Process] = []

    def begin(self, *more: str) -> None:
        """At the address that its place has now."""
        peers = ("--peers", ",".join(self.peers)) if self.peers else ()
        super().begin("--listen", self.address_in_lab, *peers, *more)

    @property
    def address_in_lab(self) -> str:
        """HOST:PORT by which the other nodes reach it."""
        return f"{self.place.address}:{API_PORT}"

    @property
    def has_joined(self) -> bool:
        """Whether its data directory belongs to a cluster: then it comes back without a token."""
        return (self.data_dir / "cluster.json").exists()

    def wait_serving(self, timeout_s: float = SERVING_TIMEOUT_S) -> str:
        """The line that it prints once it serves."""
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], patient(timeout_s))
        assert ready, f"{self.name} did not serve within {timeout_s} s:\n{self.tail()}"
        return super().wait_serving()

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def part(self, name: str) -> psutil.Process:
        """The process of one of PARTS."""
        return psutil.Process(self.pid) if name == "node" else self.child(name)

    def find_part(self, name: str) -> psutil.Process | None:
        """The same; None where it is not there (yet, or here)."""
        try:
            return self.part(name)
        except (AssertionError, psutil.NoSuchProcess):
            return None

    def kill_part(self, name: str) -> None:
        """kill -9."""
        if name == "node":
            self.kill()
        else:
            self.part(name).send_signal(signal.SIGKILL)

    def pause(self, *names: str) -> None:
        """SIGSTOP to these of PARTS, in this order; all of them: the whole machine seems to stand still."""
        for name in names:
            process = self.part(name)
            process.send_signal(signal.SIGSTOP)
            self._paused.append(process)

    def resume(self) -> None:
        """SIGCONT to whatever is paused."""
        for process in self._paused:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._paused.clear()

    def power_off(self) -> None:
        """Everything that runs on this machine ends at this moment: node, spawner, etcd, tasks. Its disk stays."""
        if self.is_up:
            processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.kill()
        # Those that had lost their node before.
        self.resume()
        if (self.data_dir / "host_id").exists():
            # A frozen task does not die before it is thawed (isolation/leftovers.py).
            _, left = leftovers.clean(self.host_id)
            assert not left, f"these control groups of {self.name} cannot be removed: {left}"

    def wipe(self) -> str:
        """The machine is switched off, and its data directory is lost. Gives the host id that is no more."""
        self.power_off()
        host_id = self.host_id if (self.data_dir / "host_id").exists() else ""
        self._remove_host_lock()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        assert not self.data_dir.exists(), f"{self.data_dir} cannot be removed"
        return host_id

    @property
    def etcd_port(self) -> int | None:
        """Of its etcd's client port on loopback; None where it runs none."""
        ports = remembered(self.data_dir / "etcd" / "ports.json")
        return ports.client if ports is not None and self.is_up and self.find_part("etcd") is not None else None

    def task_processes(self) -> set[int]:
        """Pids of everything that its tasks run now."""
        return processes_in(self.cgroups())

    def find_view(self) -> NodeView | None:
        """What it says of itself; None where it does not answer or has no lease."""
        try:
            with self.client(patience_s=0.0) as client:
                return next((view for view in client.nodes() if view.host_id == self.host_id), None)
        except (PilferError, OSError):
            return None

    def run(self, *command: str, timeout_s: float = 30.0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command in its place."""
        return subprocess.run(
            self.place.command(*command), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def end(self) -> None:
        self.resume()
        super().end()
