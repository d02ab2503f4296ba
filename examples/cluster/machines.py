"""Nodes as a user starts them, each in a place of the laboratory: what `make cluster` shows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pilfer
from examples.cluster.network import Network, Place

API_PORT = 7400
CPU = 4
MEMORY = "512M"
STOP_TIMEOUT_S = 30.0
#: Five voters take about 20 s.
VOTERS_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.5


class ClusterFailed(Exception):  # noqa: N818  (what happened, in the past)
    """The cluster cannot go on; the text is for the user."""


class Machine:
    """One node: its place, its data directory, and its process while it runs."""

    def __init__(self, place: Place, directory: Path, peers: Sequence[str]) -> None:
        """peers: HOST:PORT of those that it joins; none: it founds the cluster."""
        self.place = place
        self.name: str = place.name
        self.address: str = f"{place.address}:{API_PORT}"
        self.data = directory / place.name
        self.log = directory / f"{place.name}.log"
        self._peers = peers
        self._token = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def socket(self) -> str:
        """Where the command line reaches it: a file, and so not behind any cut."""
        return f"unix:{self.data}/node.sock"

    @property
    def pid(self) -> int | None:
        """None while its process does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def client(self) -> pilfer.Client:
        return pilfer.Client(self.socket, timeout_s=5.0, patience_s=0.0)

    def begin(self, token: str | None = None) -> None:
        """Starts it, and waits for nothing. The token is only needed the first time."""
        self._token = token or self._token
        command = [sys.executable, "-m", "node", "start", "--data-dir", str(self.data), "--name", self.name]
        command += ["--listen", self.address, "--cpu", str(CPU), "--memory", MEMORY]
        command += ["--peers", ",".join(self._peers)] if self._peers else []
        with self.log.open("a") as log:
            self._close_pipe()
            self._process = subprocess.Popen(
                self.place.command(*command),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PILFER_JOIN_TOKEN": self._token},
                # Ctrl-C is for the one who started all this; it stops the nodes in order.
                start_new_session=True,
            )

    def wait_serving(self) -> None:
        """Raises ClusterFailed when it ends instead."""
        if self._process is None or self._process.stdout is None or not self._process.stdout.readline():
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
            raise ClusterFailed(f"node {self.name} did not start; the end of {self.log}:\n{tail}")

    def stop(self) -> None:
        """Asks it to stop in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            # A person may have stopped it to see what happens.
            self._process.send_signal(signal.SIGCONT)

    def wait_stopped(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def running_cluster(directory: Path, count: int) -> Iterator[list[Machine]]:
    """So many machines that are one cluster; stopped in order afterwards. Raises ClusterFailed, NetworkError."""
    machines: list[Machine] = []
    with Network() as network:
        try:
            for number in range(count):
                place = network.add(chr(ord("a") + number) if count <= 26 else f"n{number + 1}")
                machines.append(Machine(place, directory, [machine.address for machine in machines]))
            first, *others = machines
            first.begin()
            first.wait_serving()
            if others:
                with first.client() as client:
                    token = client.create_token(ttl_s=3600.0).text
                for machine in others:
                    machine.begin(token)
                for machine in others:
                    machine.wait_serving()
            yield machines
        finally:
            for machine in machines:
                machine.stop()
            for machine in machines:
                machine.wait_stopped()


def wait_voters(machines: Sequence[Machine]) -> None:
    """Returns when as many nodes vote in etcd as so many machines want: 1, 3 or 5. On the way there are two for a
    moment, of which none may be lost. Gives up after a while, for it is only a demonstration."""
    wanted = next(count for count in (5, 3, 1) if len(machines) >= count)
    deadline = time.monotonic() + VOTERS_TIMEOUT_S
    with machines[0].client() as client:
        while time.monotonic() < deadline:
            roles = [view.role for view in client.nodes()]
            if roles.count("voter") >= wanted and "learner" not in roles:
                return
            time.sleep(LOOK_EVERY_S)
