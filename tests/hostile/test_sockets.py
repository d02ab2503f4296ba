"""Sockets: of the machine, of the node and of etcd; and what tasks hand to each other through one that they share."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from isolation import process
from isolation.client import SpawnerConfig
from isolation.spec import BindMount
from pilfer import Mount
from tests.hostile.harness import Hostile, Report
from tests.hostile.nodes import HostileNode, hostile_node
from tests.isolation_live.conftest import running, text
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


async def _third_task(hostile: Hostile, place: Path, kind: str) -> tuple[Report, Report]:
    """What the taker and the victim say, where the giver has ended before the victim began."""
    mount = (BindMount(str(place), "/shared", read_only=False),)
    taker, out, err = await hostile.runner.launch(
        hostile.spec("passing", "take", "/shared/socket", "/shared/go", mounts=mount)
    )
    await wait_until(lambda: "door: open" in text(out), what=f"the door is open: {text(err)}")
    await hostile.run("passing", "give", "/shared/socket", kind, mounts=mount)
    await wait_until(lambda: "took: " in text(out), what="the taker has them")
    victim, victims_out, victims_err = await hostile.runner.launch(
        hostile.spec("victim", "/shared/ready", "/shared/done", mounts=mount)
    )
    await wait_until((place / "ready").exists, what=f"the victim is ready: {text(victims_err)}")
    (place / "go").touch()
    await taker.wait()
    (place / "done").touch()
    await victim.wait()
    assert "write output" in text(out), text(err)
    return _said(text(out)), _said(text(victims_out))


def _said(words: str) -> Report:
    return Report(dict(line.split(": ", 1) for line in words.splitlines()), words, "")


@pytest.mark.parametrize("kind", ["quiet", "listening"])
async def test_what_one_task_hands_on_leads_to_no_third_one(hostile: Hostile, place: Path, kind: str) -> None:
    """The scratch directory and the network namespace of a task may be another's a moment later; whoever was given a
    descriptor of them must not reach that one."""
    taker, victim = await _third_task(hostile, place, kind)
    assert taker.succeeded <= {"write output"}, taker.said
    assert victim.said == {"scratch": "secret", "served": "nobody", "connected": "nobody"}


#: Both are used again whatever became of them.
_CARELESS = (
    "import sys; sys.path[:0] = sys.argv[3:]; from isolation import launch, namespaces; "
    "launch.Launcher._can_meet_others = lambda *_: False; namespaces.NetworkPool._is_as_new = lambda *_: True; "
    "from isolation.spawner import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


async def test_that_it_would_lead_there_otherwise(
    config: SpawnerConfig, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PROGRAM", _CARELESS)
    async for runner in running(config):
        taker, victim = await _third_task(Hostile(runner), place, "listening")
    assert taker.succeeded >= {"list scratch", "list sockets", "accept", "connect"}, taker.said
    assert victim.said == {"scratch": "secret", "served": "SUCCEEDED", "connected": "SUCCEEDED"}


@pytest.fixture(scope="module")
def node() -> Iterator[HostileNode]:
    with hostile_node("--listen", "127.0.0.1:0", "--allow-host-network", "--allow-mount", "/var/lib") as found:
        yield found


def _ports(node: HostileNode) -> list[int]:
    """Of the node and of its etcd: its own API, etcd's clients and peers."""
    found = []
    for process_ in (psutil.Process(node.node.pid), node.node.child("etcd")):
        found += [c.laddr.port for c in process_.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert len(found) == 3, found
    return found


def _addresses() -> list[str]:
    """Those of the machine, by which something that listens everywhere would be reached from another network."""
    found = ["127.0.0.1", "127.0.0.2", "::1"]
    for addresses in psutil.net_if_addrs().values():
        found += [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
    return found


@pytest.mark.node
def test_the_nodes_ports_from_a_network_of_ones_own(node: HostileNode) -> None:
    ports = _ports(node)
    report = node.run("sockets", *(f"tcp:{address}:{port}" for address in _addresses() for port in ports))
    assert report.said
    assert set(report.said.values()) <= {"refused ECONNREFUSED", "refused ENETUNREACH", "refused EADDRNOTAVAIL"}


@pytest.mark.node
def test_the_nodes_ports_from_the_hosts_network(node: HostileNode) -> None:
    """They can be reached there, and nobody is served who has no certificate of the cluster."""
    ports = _ports(node)
    wanted = [f"{kind}:127.0.0.1:{port}" for port in ports for kind in ("tcp", "tls")]
    report = node.run("sockets", *wanted, network="host")
    assert {name for name in report.said if name.startswith("tcp")} == report.succeeded, report.said
    assert {report.get(f"tls:127.0.0.1:{port}") for port in ports} == {"refused EPERM"}


@pytest.mark.node
def test_that_a_certificate_would_serve(node: HostileNode) -> None:
    """The same question with the node's own certificate, given to the task by the test, is answered by the node and by
    its etcd (whose port for peers asks for other names in it)."""
    place = Path(tempfile.mkdtemp(prefix="pilfer-test-", dir="/var/lib"))
    try:
        place.chmod(0o755)
        for suffix in ("crt", "key"):
            copy = shutil.copy(node.node.data_dir / "pki" / f"node.{suffix}", place)
            Path(copy).chmod(0o644)
        wanted = [f"tls:127.0.0.1:{port}" for port in _ports(node)]
        mounts = (Mount(str(place), "/given"),)
        environment = {"CERTIFICATE": "/given/node"}
        report = node.run("sockets", *wanted, network="host", mounts=mounts, env=environment)
        assert len(report.succeeded) >= 2, (report.said, report.stderr)
    finally:
        shutil.rmtree(place)


@pytest.mark.node
def test_unix_sockets_of_the_machine(node: HostileNode) -> None:
    """Every one that the kernel knows, by path and by name; the node's own; those that others are known by."""
    known = [line.split(" ")[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    wanted = {f"abstract:{name[1:]}" for name in known if name.startswith("@")}
    wanted |= {f"unix:{name}" for name in known if name.startswith("/")}
    wanted |= {f"unix:{node.node.data_dir}/node.sock", f"unix:/proc/{node.node.pid}/root/run/dbus/system_bus_socket"}
    usual = ("docker.sock", "dbus/system_bus_socket", "containerd/containerd.sock", "systemd/private", "nscd/socket")
    wanted |= {f"unix:{run}/{name}" for run in ("/run", "/var/run") for name in usual}
    report = node.run("sockets", *wanted)
    assert report.said.keys() >= wanted
    assert report.succeeded == frozenset(), report.said


@pytest.mark.node
def test_the_nodes_socket_with_the_hosts_network(node: HostileNode) -> None:
    """A network namespace has nothing to do with paths: it is the view that keeps a task from it."""
    address = f"unix:{node.node.data_dir}/node.sock"
    assert node.run("sockets", address, network="host").get(address) == "refused ENOENT"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address.removeprefix("unix:"))  # it is there


@pytest.mark.node
def test_that_sockets_are_reached_where_they_may(node: HostileNode) -> None:
    """An abstract one in the host's network, and one that lies in a mount, in spite of a network of one's own and of a
    read-only mount: whoever mounts a directory mounts the sockets in it (docs/isolation.md)."""
    place = Path(tempfile.mkdtemp(prefix="pilfer-test-", dir="/var/lib"))
    try:
        place.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as path, socket.socket(socket.AF_UNIX) as name:
            path.bind(str(place / "socket"))
            (place / "socket").chmod(0o777)
            name.bind("\0pilfer-test-reached")
            for one in (path, name):
                one.listen(10)
            mounts = (Mount(str(place), "/given", read_only=True),)
            assert node.run("sockets", "unix:/given/socket", mounts=mounts).succeeded
            wanted = "abstract:pilfer-test-reached"
            assert node.run("sockets", wanted, network="host").succeeded
            assert node.run("sockets", wanted).get(wanted) == "refused ECONNREFUSED"
    finally:
        shutil.rmtree(place)
