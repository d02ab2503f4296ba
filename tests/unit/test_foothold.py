"""Founding, coming back, and what is refused because it is neither."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from node.app import until_started_or_stopped
from node.config import Settings, load_settings
from node.datadir import DataDir, DataDirError
from node.joining import foothold
from node.joining.cluster_memory import ClusterMemory
from node.joining.foothold import Foothold, stand
from node.joining.peer_answers import JoinRefused
from node.joining.place import Place
from node.listening import AddressInUse
from node.trust.material import JoinNeeded


def settings_of(data_dir: Path, **flags: Any) -> Settings:
    return load_settings({"data_dir": str(data_dir), **flags}, {}, system_file=data_dir.parent / "none")


async def start(data_dir: Path, token: str | None = None, **flags: Any) -> Foothold:
    settings = settings_of(data_dir, **flags)
    with DataDir.open(data_dir) as data:
        return await stand(settings, Place.of(settings.listen, settings.advertise, settings.peers), data, token)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "node"


async def test_an_empty_directory_founds_until_etcd_holds_the_id(data_dir: Path) -> None:
    first = await start(data_dir)
    assert first.is_founding
    again = await start(data_dir)
    assert again.is_founding
    assert again.memory.cluster_id == first.memory.cluster_id
    again.founded()
    third = await start(data_dir)
    assert not third.is_founding
    assert third.memory.cluster_id == first.memory.cluster_id


async def test_founding_that_is_killed_at_any_step_founds_one_cluster(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before cluster.json is written, and between it and the certificates."""

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClusterMemory, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            await start(data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(foothold, "ensure_trust", killed)
        with pytest.raises(KeyboardInterrupt):
            await start(data_dir)
    written = ClusterMemory.load(data_dir)
    assert written is not None
    last = await start(data_dir)
    assert last.is_founding
    assert last.memory.cluster_id == written.cluster_id


async def test_a_host_that_joins_never_founds(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start alone was killed before it wrote cluster.json; the next one joins another cluster."""
    with DataDir.open(data_dir) as data:
        (data.etcd / "founding").touch()

    async def joined(*_: Any, data_dir: Path, **__: Any) -> ClusterMemory:
        memory = ClusterMemory(data_dir, cluster_id="c0ffee00-0000-4000-8000-000000000000", name="b", is_founder=False)
        memory.save()
        return memory

    monkeypatch.setattr(foothold, "join", joined)
    # No certificate comes with this join: what counts is what the directory says afterwards.
    with pytest.raises(JoinNeeded):
        await start(data_dir, "token", listen="127.0.0.1:0", peers="127.0.0.1:1")
    assert not (data_dir / "etcd" / "founding").exists()


async def test_the_mark_of_a_founder_means_nothing_to_a_member(data_dir: Path) -> None:
    first = await start(data_dir)
    member = ClusterMemory(data_dir, cluster_id=first.memory.cluster_id, name="b", is_founder=False)
    assert first.founding.exists()
    assert not Foothold(member, first.trust, first.founding).is_founding


@pytest.mark.parametrize("port", ["taken", "0", "7400"])
async def test_a_start_that_cannot_listen_leaves_nothing_behind(data_dir: Path, port: str) -> None:
    """Found by trying it out: a mistyped --listen founded a cluster, and the right start, with --peers, was refused."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        listen = taken if port == "taken" else f"nohost.invalid:{port}"
        with pytest.raises(AddressInUse) as caught:
            await start(data_dir, listen=listen)
        with pytest.raises(AddressInUse):
            await start(data_dir, "token", listen=listen, peers="127.0.0.1:1")
    assert f"cannot listen on {listen}" in str(caught.value)
    assert "--listen" in str(caught.value)
    assert ClusterMemory.load(data_dir) is None
    assert not (data_dir / "etcd" / "founding").exists()
    with pytest.raises(JoinRefused, match="token"):  # not: belongs to the cluster that it founded
        await start(data_dir, "token", listen="127.0.0.1:0", peers="127.0.0.1:1")


async def test_a_host_that_comes_back_is_not_kept_by_a_port_that_is_free_in_a_moment(data_dir: Path) -> None:
    """What its last run left behind may hold it until the spawner has started; the bind itself comes after that."""
    (await start(data_dir)).founded()
    with socket.create_server(("127.0.0.1", 0)) as left:
        await start(data_dir, listen=f"127.0.0.1:{left.getsockname()[1]}")


async def test_peers_without_a_token_are_refused(data_dir: Path) -> None:
    with pytest.raises(DataDirError, match="node token create"):
        await start(data_dir, listen="127.0.0.1:0", peers="127.0.0.1:1")


async def test_a_member_comes_back_without_a_token(data_dir: Path) -> None:
    first = await start(data_dir)
    first.founded()
    again = await start(data_dir, listen="127.0.0.1:0", peers="127.0.0.1:1")
    assert again.memory.cluster_id == first.memory.cluster_id


@pytest.mark.parametrize("what", ["certificates", "data of etcd"])
async def test_what_is_half_gone_founds_no_second_cluster(data_dir: Path, what: str) -> None:
    first = await start(data_dir)
    first.founded()
    (data_dir / "cluster.json").unlink()
    if what == "data of etcd":
        (data_dir / "etcd" / "data").mkdir()
        for path in (data_dir / "pki").glob("*.crt"):
            path.unlink()
    with pytest.raises(DataDirError, match=r"cluster\.json is missing"):
        await start(data_dir)


async def test_lost_certificates_are_not_made_anew(data_dir: Path) -> None:
    first = await start(data_dir)
    first.founded()
    for path in (data_dir / "pki").glob("*.crt"):
        path.unlink()
    with pytest.raises(DataDirError, match="lacks the certificates"):
        await start(data_dir)


async def test_a_stop_ends_a_start_that_waits_for_ever() -> None:
    started, stop, cleaned_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start_that_waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    node = asyncio.create_task(start_that_waits())
    waiting = asyncio.create_task(until_started_or_stopped(node, started, stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(waiting, 10)
    assert cleaned_up.is_set()


async def test_a_node_that_has_started_is_left_to_stop_in_order() -> None:
    started, stop, in_order = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def node() -> None:
        started.set()
        await stop.wait()
        await asyncio.sleep(0)
        in_order.set()

    waiting = asyncio.create_task(until_started_or_stopped(asyncio.create_task(node()), started, stop))
    await started.wait()
    stop.set()
    await asyncio.wait_for(waiting, 10)
    assert in_order.is_set()


async def test_what_breaks_a_start_is_told() -> None:
    async def broken() -> None:
        raise DataDirError("no space")

    with pytest.raises(DataDirError, match="no space"):
        await until_started_or_stopped(asyncio.create_task(broken()), asyncio.Event(), asyncio.Event())
