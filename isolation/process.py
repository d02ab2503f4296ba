"""Starts the spawner process: its sockets, its program, its exec. Whoever calls this speaks `protocol.py` with it."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from isolation.errors import HostLacks

_BUFFER_BYTES = 4 * 1024 * 1024

_PROGRAM = (
    "import sys; sys.path[:0] = sys.argv[3:]; from isolation.spawner import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)


class Started(NamedTuple):
    process: subprocess.Popen[bytes]
    #: Launches out, reports in.
    requests: socket.socket
    control: socket.socket


def start() -> Started:
    """The process. The first message is the caller's: `Configure` on `control`. (Not an argument: every sandbox can
    read the arguments of its PID 1.) It is answered on `requests`.

    Raises HostLacks where something is not installed, OSError.
    """
    paths = _paths()
    requests, requests_theirs = socket_pair()
    control, control_theirs = socket_pair()
    fds = (requests_theirs.fileno(), control_theirs.fileno())
    # An exec through vfork: no preexec_fn, which would fork a process that has grpc's threads.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, fds), *paths],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8"},
        cwd="/",
        pass_fds=fds,
        start_new_session=True,
    )
    requests_theirs.close()
    control_theirs.close()
    return Started(process, requests, control)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Our end and the spawner's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        # The kernel caps it at net.core.wmem_max; root could go beyond, for nothing.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ours, theirs


def _paths() -> list[str]:
    """Where the spawner finds this package and python-prctl."""
    found = importlib.util.find_spec("prctl")
    if found is None or found.origin is None:
        raise HostLacks("python-prctl is not installed (its build needs gcc and libcap-dev)")
    if importlib.util.find_spec("isolation._sandbox") is None:
        raise HostLacks("the C extension isolation/_sandbox.c is not built: `make setup`, or `pip install -e .`")
    here = Path(__file__).resolve().parent.parent
    return list(dict.fromkeys([str(here), str(Path(found.origin).parent)]))
