"""What the spawner does where it cannot look into a namespace, or cannot leave one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from isolation.errors import SpawnerLost
from isolation.mounts import View
from isolation.namespaces import NetworkPool


@pytest.fixture
def proc() -> Iterator[int]:
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_network_that_cannot_be_looked_into_is_not_used_again(proc: int) -> None:
    """Reading its counters takes memory, which there may be none of: no reason to end the sandboxes of others."""
    pool = NetworkPool(proc)
    network, *counters = (os.dup(proc) for _ in range(3))  # a directory cannot be read
    pool._statistics[network] = (counters[0], counters[1])
    pool.give_back(network)
    assert pool._free == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(network)
    pool.close()


def test_who_cannot_leave_a_network_ends(proc: int) -> None:
    pool = NetworkPool(proc)
    os.close(pool._own)
    pool._own = os.dup(proc)  # no namespace: setns(2) answers EINVAL
    with pytest.raises(SpawnerLost, match="Invalid argument"):
        pool._come_back()
    pool.close()


def test_who_cannot_leave_the_hosts_mounts_ends(proc: int) -> None:
    """As a failed launch it would go on, and clone the next sandbox with all that the host has."""
    view = View.__new__(View)
    view._own_namespace = proc
    with pytest.raises(SpawnerLost, match="Invalid argument") as lost:
        view._come_back()
    assert not isinstance(lost.value, OSError)
