"""A node that comes back under another address: what it tells the others, and what they remember.

On loopback every address of 127.0.0.0/8 is this machine's, so that a host that moves is one that is started again with
another `--listen`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from etcd.binary import find_etcd
from etcd.ports import remembered
from pilfer import Client
from tests.support.node_process import LiveNode, live_node
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

#: Of everything that takes several rounds between nodes: the machine may be busy.
PATIENCE_S = 90.0
SIZE = ("--cpu", "1", "--memory", "64M")


def place(host: str) -> str:
    """HOST:PORT with a port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


@contextlib.contextmanager
def joined(founder: LiveNode, name: str, listen: str, peers: str) -> Iterator[LiveNode]:
    """A node that joined; `flags` are without the token afterwards, and `--listen` is the caller's."""
    made = founder.cli("token", "create")
    assert made.returncode == 0, made.stderr
    with live_node(*SIZE, "--name", name, "--peers", peers, "--listen", listen, "--token", made.stdout.strip()) as node:
        node.flags = (*SIZE, "--name", name)
        yield node


def addresses(node: LiveNode) -> dict[str, str]:
    """Of all nodes that are ready, as this one tells them."""
    with node.client() as client:
        return {view.name: view.address for view in client.nodes() if view.state == "ready"}


def count_voters(node: LiveNode) -> int:
    with node.client() as client:
        return [view.role for view in client.nodes()].count("voter")


def peer_urls(node: LiveNode) -> dict[str, list[str]]:
    """Of etcd's members, by host id, as the etcd of this node has them."""
    pki, ports = node.data_dir / "pki", remembered(node.data_dir / "etcd" / "ports.json")
    assert ports is not None
    asked = subprocess.run(
        [
            str(Path(find_etcd(None).path).with_name("etcdctl")),
            f"--endpoints=https://127.0.0.1:{ports.client}",
            f"--cacert={pki}/ca.crt", f"--cert={pki}/node.crt", f"--key={pki}/node.key",
            "member", "list", "-w", "json",
        ],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return {member["name"]: member["peerURLs"] for member in json.loads(asked.stdout)["members"]}


def peer_hosts(node: LiveNode, asked: LiveNode) -> set[str]:
    """Where other members look for its etcd, as the etcd of `asked` has it."""
    return hosts(url.removeprefix("https://") for url in peer_urls(asked)[node.host_id])


def memory(node: LiveNode) -> dict[str, list[str]]:
    """What it knows of the cluster for its next start."""
    found: dict[str, list[str]] = json.loads((node.data_dir / "cluster.json").read_text())
    return found


def remembered_nodes(node: LiveNode) -> set[str]:
    return set(memory(node)["node_addresses"])


def remembered_voters(node: LiveNode) -> set[str]:
    """Hosts of etcd's voters."""
    return hosts(memory(node)["etcd_endpoints"])


def certified(node: LiveNode) -> set[str]:
    certificate = x509.load_pem_x509_certificate((node.data_dir / "pki" / "node.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(address) for address in names.get_values_for_type(x509.IPAddress)}


def runs_a_task(client: Client) -> bool:
    return client.wait(client.submit("true"), timeout_s=PATIENCE_S).succeeded


def hosts(addresses: Iterable[str]) -> set[str]:
    return {address.rpartition(":")[0] for address in addresses}


def wait_true(check: Callable[..., bool], *args: object) -> None:
    wait_until_sync(partial(check, *args), PATIENCE_S, what=check.__name__, every_s=0.2)


def is_told_at(node: LiveNode, asked: LiveNode, host: str) -> bool:
    return peer_hosts(node, asked) == {host}


def knows(asked: LiveNode, where: dict[str, str]) -> bool:
    return addresses(asked) == where


def remembers(asked: LiveNode, where: dict[str, str]) -> bool:
    return remembered_nodes(asked) >= set(where.values())


def remembers_voter(asked: LiveNode, host: str) -> bool:
    return host in remembered_voters(asked)


def is_certified(node: LiveNode, host: str) -> bool:
    return host in certified(node)


def has_voters(asked: LiveNode, count: int) -> bool:
    return count_voters(asked) == count


def test_a_founder_that_was_alone_is_joined_once_it_listens() -> None:
    """Its etcd was told to nobody but itself; now it is told at an address that others reach."""
    with live_node(*SIZE, "--name", "first") as founder:
        assert addresses(founder) == {"first": ""}
        assert founder.stop() == 0
        listen = place("127.0.0.2")
        founder.start("--listen", listen)
        assert addresses(founder) == {"first": listen}
        wait_true(is_told_at, founder, founder, "127.0.0.2")
        wait_true(remembers_voter, founder, "127.0.0.2")
        with joined(founder, "second", place("127.0.0.3"), listen) as second, second.client() as client:
            assert runs_a_task(client)
            assert addresses(second).keys() == {"first", "second"}
            # Not by 127.0.0.1: from another machine that would be another etcd.
            assert remembered_voters(second) == {"127.0.0.2"}


def test_a_voter_and_a_client_come_back_under_other_addresses() -> None:
    where = {name: place(f"127.0.0.{number}") for number, name in enumerate("abcd", 2)}
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(live_node(*SIZE, "--name", "a", "--listen", where["a"]))
        nodes = {"a": a}
        for name in "bcd":
            nodes[name] = stack.enter_context(joined(a, name, where[name], where["a"]))
        wait_true(has_voters, a, 3)
        with a.client() as client:
            role_of = {view.name: view.role for view in client.nodes()}
        voter, plain = (next(name for name in "bcd" if role_of[name] == role) for role in ("voter", "client"))
        for name, host in ((voter, "127.0.0.12"), (plain, "127.0.0.13")):
            node = nodes[name]
            assert node.stop() == 0
            where[name] = place(host)
            node.start("--listen", where[name])
            for asked in nodes.values():
                wait_true(knows, asked, where)
                wait_true(remembers, asked, where)
            wait_true(is_certified, node, host)
            with node.client() as client:
                assert runs_a_task(client)
        wait_true(is_told_at, nodes[voter], a, "127.0.0.12")
        for asked in nodes.values():
            wait_true(remembers_voter, asked, "127.0.0.12")
        assert count_voters(a) == 3
