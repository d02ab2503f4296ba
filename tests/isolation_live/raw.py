"""A spawner process without the client, for what the client would never send."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from isolation import client, protocol
from isolation.client import SpawnerConfig
from isolation.spec import Ended, HostReport, Limits, SandboxSpec, Started
from tests.support.wait import patient

PATIENCE_S = patient(20.0)


class RawSpawner:
    def __init__(self, config: SpawnerConfig) -> None:
        self.requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (requests.fileno(), control.fileno())
        root = str(Path(client.__file__).parents[1])
        program = (
            "import sys; sys.path[:0] = sys.argv[3:]; "
            "from isolation.spawner import main; main(*map(int, sys.argv[1:3]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", program, *map(str, fds), root], pass_fds=fds, start_new_session=True
        )
        requests.close()
        control.close()
        protocol.send(self.control, protocol.Configure(config))
        report = self.receive()
        assert isinstance(report, HostReport), report

    def send(self, message: protocol.Message, fds: tuple[int, ...] = ()) -> None:
        """On the request socket, when there is room."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            select.select([], [self.requests], [], PATIENCE_S)
            with contextlib.suppress(BlockingIOError):
                protocol.send(self.requests, message, fds)
                return
        raise AssertionError("the spawner does not read")

    def receive(self) -> protocol.Message:
        """The next report, waited for."""
        ready, _, _ = select.select([self.requests], [], [], PATIENCE_S)
        assert ready, "no report"
        received = protocol.receive(self.requests)
        assert received.data, "the spawner is gone"
        return protocol.decode(received.data)

    def drain(self) -> None:
        """Reads whatever is there; the spawner must still be."""
        while select.select([self.requests], [], [], 0)[0]:
            self.receive()

    def run_true(self) -> Ended:
        spec = SandboxSpec("run-true", ("/bin/true",), {}, Limits(1.0, None, 10))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.send(protocol.Launch(spec), (null, null, null))
        finally:
            os.close(null)
        while True:
            report = self.receive()
            if isinstance(report, Ended) and report.id == spec.id:
                return report
            assert isinstance(report, Started | protocol.Refused) or getattr(report, "id", "") != spec.id, report

    def close(self) -> None:
        self.requests.close()
        self.control.close()
        self.process.wait(PATIENCE_S)
