"""The spawner's way out to the node, without a process of its own."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import Any

import pytest

from isolation import protocol
from isolation.spawner import Spawner


def test_short_memory_is_not_the_end_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without memory for a datagram (ENOBUFS) says so for a moment; to close would end every task."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spawner = Spawner.__new__(Spawner)
    spawner._requests, spawner._outbox, spawner._is_closing = ours, deque(), False
    spawner._send(protocol.Pong(1))

    def short(*_: Any) -> int:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "send_encoded", short)
        spawner._flush()
    assert not spawner._is_closing
    spawner._flush()
    assert protocol.decode(theirs.recv(4096)) == protocol.Pong(1)
    ours.close()
    theirs.close()
