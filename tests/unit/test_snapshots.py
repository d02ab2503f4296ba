"""Rolling snapshots: when, how many, and what a node does that cannot take one. On virtual time."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from etcd.port import Put, Txn
from node.core.snapshots import KEPT, RESERVE_BYTES, SHARERS, between_s, due_in_s, has_room, to_drop
from node.recovery.snapshots import RETRY_S, Snapshots
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd, no_faults
from tests.support.virtual_time import run_virtual

INTERVAL_S = 600.0
#: 2026-01-01
EPOCH = 1_767_225_600.0


def test_each_node_has_a_time_of_its_own() -> None:
    firsts = [due_in_s(None, 0.0, f"host-{n}", interval_s=INTERVAL_S, nodes=5) for n in range(200)]
    assert all(0 <= first <= 0.1 * INTERVAL_S for first in firsts)
    nexts = [due_in_s(100.0, 0.0, f"host-{n}", interval_s=INTERVAL_S, nodes=5) for n in range(200)]
    assert all(0.9 * INTERVAL_S - 100 <= wait <= 1.1 * INTERVAL_S - 100 for wait in nexts)
    assert len({round(wait) for wait in nexts}) > 60
    assert due_in_s(None, 0.1 * INTERVAL_S, "host", interval_s=INTERVAL_S, nodes=5) == 0.0
    assert due_in_s(1e9, 0.0, "host", interval_s=INTERVAL_S, nodes=5) == 0.0
    # A clock that was set back must not put it off for longer than a turn.
    assert due_in_s(-1e9, 0.0, "host", interval_s=INTERVAL_S, nodes=5) <= 1.1 * INTERVAL_S


@pytest.mark.parametrize("nodes", [1, 3, 10, 100, 1000])
def test_what_voters_send_is_bounded(nodes: int) -> None:
    assert nodes / between_s(INTERVAL_S, nodes) <= SHARERS / INTERVAL_S


def test_what_is_kept_and_when_there_is_room() -> None:
    assert to_drop(["3", "1", "2", "5", "4"], "5") == ["1", "2"]
    assert to_drop(["1"], "1") == []
    # The clock was ahead when 7, 8 and 9 were taken: what is taken since must not be dropped for them.
    assert to_drop(["7", "8", "9", "4"], "4") == ["7"]
    assert to_drop(["8", "9", "4", "5"], "5") == ["8"]
    assert has_room(RESERVE_BYTES, 0)
    assert not has_room(RESERVE_BYTES + 199, 100)


class Host:
    """One host's snapshots, on a loop of virtual time."""

    def __init__(self, directory: Path, *, nodes: int = 1) -> None:
        self.etcd = FakeEtcd()
        self.directory = directory
        self.clock_ahead_s = 0.0
        loop = asyncio.get_running_loop()
        self.snapshots = Snapshots(
            self.etcd,
            directory,
            "host",
            interval_s=INTERVAL_S,
            count_nodes=lambda: nodes,
            wall_clock=lambda: EPOCH + loop.time() + self.clock_ahead_s,
        )

    async def run_for(self, seconds: float) -> list[str]:
        running = asyncio.create_task(self.snapshots.run())
        await asyncio.sleep(seconds)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        return sorted(path.name for path in self.directory.iterdir())


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    async def program() -> None:
        host = Host(tmp_path)
        (tmp_path / "20251231T000000Z.db.new").write_bytes(b"half")
        (tmp_path / "notes of the operator").write_text("stay")
        first = await host.run_for(0.2 * INTERVAL_S)
        assert len(first) == 2
        await host.etcd.txn(Txn((), (Put(b"/a", b"written since"),)))
        later = await host.run_for(10 * INTERVAL_S)
        kept = [name for name in later if name.endswith(".db")]
        assert len(kept) == KEPT
        assert "notes of the operator" in later
        assert first[0] not in kept
        assert b"written since" in (tmp_path / kept[-1]).read_bytes()

    run_virtual(program())


def test_a_restart_takes_none_before_it_is_due(tmp_path: Path) -> None:
    async def program() -> None:
        host = Host(tmp_path)
        once = await host.run_for(0.2 * INTERVAL_S)
        assert await host.run_for(0.2 * INTERVAL_S) == once

    run_virtual(program())


def test_without_etcd_it_is_said_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def program() -> None:
        host = Host(tmp_path)
        host.etcd.faults = lambda _method, _argument: LOST_BEFORE
        assert await host.run_for(0.2 * INTERVAL_S) == []
        assert "no snapshot" in caplog.text
        host.etcd.faults = no_faults
        assert len(await host.run_for(0.1 * INTERVAL_S + RETRY_S)) == 1

    run_virtual(program())


def test_a_full_disk_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(RESERVE_BYTES - 1))

    async def program() -> None:
        host = Host(tmp_path)
        with caplog.at_level(logging.WARNING):
            assert await host.run_for(5 * INTERVAL_S) == []
        assert caplog.text.count("no room for a snapshot") == 1

    run_virtual(program())


def test_a_directory_that_an_operator_removed_is_made_again(tmp_path: Path) -> None:
    async def program() -> None:
        host = Host(tmp_path / "snapshots")
        running = asyncio.create_task(host.snapshots.run())
        await asyncio.sleep(1.5 * INTERVAL_S)
        shutil.rmtree(host.directory)
        await asyncio.sleep(1.5 * INTERVAL_S + RETRY_S)
        assert not running.done()
        assert len(list(host.directory.iterdir())) >= 1
        running.cancel()

    run_virtual(program())


def test_a_directory_that_cannot_be_read_is_said_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def program() -> None:
        host = Host(tmp_path / "snapshots")
        host.directory.write_text("no directory")
        running = asyncio.create_task(host.snapshots.run())
        await asyncio.sleep(INTERVAL_S)
        assert not running.done()
        assert "no snapshot" in caplog.text
        host.directory.unlink()
        await asyncio.sleep(RETRY_S + INTERVAL_S)
        assert len(list(host.directory.iterdir())) >= 1
        running.cancel()

    run_virtual(program())


def test_zero_means_none(tmp_path: Path) -> None:
    async def program() -> None:
        host = Host(tmp_path)
        host.snapshots._interval_s = 0.0
        await asyncio.wait_for(host.snapshots.run(), 1.0)
        assert list(tmp_path.iterdir()) == []

    run_virtual(program())


def test_snapshots_of_a_clock_that_was_ahead_keep_nobody_from_taking_another(tmp_path: Path) -> None:
    async def program() -> None:
        for year in (2090, 2091, 2092):
            (tmp_path / f"{year}0101T000000Z.db").write_bytes(b"taken in the future")
        taken = await Host(tmp_path).run_for(3 * INTERVAL_S)
        assert len(taken) == KEPT
        assert all(name < "2090" for name in taken)

    run_virtual(program())


def test_a_clock_that_is_put_right_while_the_node_runs_keeps_nobody_from_taking_another(tmp_path: Path) -> None:
    async def program() -> None:
        host = Host(tmp_path)
        host.clock_ahead_s = 30 * 86400.0
        running = asyncio.create_task(host.snapshots.run())
        await asyncio.sleep(5 * INTERVAL_S)
        ahead = {path.name for path in tmp_path.iterdir()}
        assert len(ahead) == KEPT
        host.clock_ahead_s = 0.0
        await asyncio.sleep(5 * INTERVAL_S)
        assert not ahead & {path.name for path in tmp_path.iterdir()}
        running.cancel()

    run_virtual(program())
