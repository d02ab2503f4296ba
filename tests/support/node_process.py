"""Whole nodes for tests: `node start` as its user starts it, and hands on its children to be hurt."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from etcd.binary import EtcdNotFound, find_etcd
from node.host_lock import HostIdBusy, HostLock, runtime_directory
from pilfer import Client
from tests.support.leaks import cgroups_of
from tests.support.require import require
from tests.support.wait import wait_until_sync

START_TIMEOUT_S = 30.0


def require_node() -> None:
    """Skips where this machine cannot run whole nodes."""
    try:
        find_etcd(None)
    except EtcdNotFound as missing:
        require("etcd", is_there=False, reason=str(missing))
    require("isolation", is_there=os.geteuid() == 0, reason="whole isolation needs root")


class LiveNode:
    """One `node start` in a data directory; may be started again there, with the same or other flags."""

    def __init__(
        self, data_dir: Path, *flags: str, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """prefix: a command that runs the node, keeping its pid, such as nsenter. environment: added to ours."""
        self.data_dir = data_dir
        self.flags = flags
        self.prefix = tuple(prefix)
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[str] | None = None
        #: It was asked to stop, and may be about it still.
        self.is_stopping = False
        self.log = data_dir.parent / f"{data_dir.name}.log"

    @property
    def address(self) -> str:
        return f"unix:{self.data_dir}/node.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *more: str) -> str:
        """Starts it and gives the line that it prints once it serves."""
        self.begin(*more)
        return self.wait_serving()

    def begin(self, *more: str) -> None:
        """Starts it, and waits for nothing."""
        command = [sys.executable, "-m", "node", "start", "--data-dir", str(self.data_dir), *self.flags, *more]
        self._close_pipe()
        self.is_stopping = False
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self.environment,
            )

    def wait_serving(self) -> str:
        """The line that it prints once it serves."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait(START_TIMEOUT_S)
            raise AssertionError(f"node ended with {code} before it served:\n{self.tail()}")
        return line

    def client(self, *, patience_s: float = 10.0, timeout_s: float | None = None) -> Client:
        """timeout_s: of one call; the client's own default otherwise."""
        if timeout_s is not None:
            return Client(self.address, patience_s=patience_s, timeout_s=timeout_s)
        return Client(self.address, patience_s=patience_s)

    def cli(self, *args: str, timeout_s: float = 60.0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """The command line against this node."""
        return subprocess.run(
            [sys.executable, "-m", "node", *args],
            env=os.environ | {"PILFER_ADDRESS": self.address},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def child(self, name: str) -> psutil.Process:
        """Its etcd or its spawner."""
        for child in psutil.Process(self.pid).children(recursive=False):
            if (name == "etcd") == child.name().startswith("etcd"):
                return child
        raise AssertionError(f"no {name} below node {self.pid}")

    def kill(self) -> None:
        """kill -9 of the node process alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)
        self._close_pipe()

    def terminate(self) -> None:
        """SIGTERM, without waiting for what follows."""
        assert self.process is not None
        self.is_stopping = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; gives the exit status."""
        assert self.process is not None
        self.terminate()
        code = self.process.wait(timeout_s)
        self._close_pipe()
        return code

    def _close_pipe(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def host_id(self) -> str:
        return (self.data_dir / "host_id").read_text().strip()

    def cgroups(self) -> list[Path]:
        return cgroups_of(self.host_id)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def end(self) -> None:
        """Whatever state it is in: nothing of it is left."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        self._close_pipe()
        self._remove_host_lock()

    def _remove_host_lock(self) -> None:
        """What a killed node leaves until the next start or boot; not that of a living one with the same host id."""
        if (self.data_dir / "host_id").exists():
            with contextlib.suppress(HostIdBusy):
                lock = HostLock.take(self.host_id, runtime_directory())
                if lock is not None:
                    lock.close()


def processes_in(cgroups: list[Path]) -> set[int]:
    """Pids in these control groups."""
    found: set[int] = set()
    for group in cgroups:
        with contextlib.suppress(OSError):
            found.update(map(int, (group / "cgroup.procs").read_text().split()))
    return found


@contextlib.contextmanager
def live_node(*flags: str) -> Iterator[LiveNode]:
    """A started node in a directory of its own; ended, and its directory removed, afterwards."""
    require_node()
    directory = Path(tempfile.mkdtemp(prefix="pilfer-test-"))
    node = LiveNode(directory / "node", *flags)
    try:
        node.start()
        yield node
    except BaseException:
        print(node.tail())
        raise
    finally:
        node.end()
        wait_until_sync(lambda: not processes_in(node.cgroups()), what="every task process is gone")
        shutil.rmtree(directory)
