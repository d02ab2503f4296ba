"""Ports are chosen once and remembered, and given up only when somebody else holds them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd.ports import Ports, choose_ports, is_free, remembered

HOST = "127.0.0.1"


def choose(file: Path, api_port: int | None = None) -> Ports:
    return choose_ports(file, api_port=api_port, client_hosts=(HOST,), peer_host=HOST)


@contextmanager
def held(port: int) -> Iterator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
        yield


def free_run(length: int) -> int:
    """The first of so many free ports in a row."""
    for port in range(20_000, 30_000):
        if all(is_free(HOST, port + i) for i in range(length)):
            return port
    raise AssertionError("no free ports")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ports.json"


def test_the_two_after_the_api_port(file: Path) -> None:
    api_port = free_run(3)
    assert choose(file, api_port) == Ports(api_port + 1, api_port + 2)
    assert remembered(file) == Ports(api_port + 1, api_port + 2)


def test_any_where_these_are_taken(file: Path) -> None:
    api_port = free_run(3)
    with held(api_port + 1):
        ports = choose(file, api_port)
    assert ports.client != api_port + 1
    assert ports.peer == api_port + 2


def test_remembered_ports_are_used_again_whatever_the_api_port(file: Path) -> None:
    first = choose(file)
    assert choose(file, free_run(3)) == first


def test_a_remembered_port_that_is_taken_is_replaced_and_the_other_one_kept(file: Path) -> None:
    first = choose(file)
    with held(first.client):
        second = choose(file)
    assert second.client != first.client
    assert second.peer == first.peer
    assert remembered(file) == second


def test_client_and_peer_differ_even_at_the_edge(file: Path) -> None:
    ports = choose(file, 65_535)
    assert ports.client != ports.peer
    assert max(ports.client, ports.peer) <= 65_535


@pytest.mark.parametrize("content", ["", "{", "[]", '{"client": 1}', '{"client": "x", "peer": 2}'])
def test_a_spoiled_file_is_replaced(file: Path, content: str) -> None:
    file.write_text(content)
    assert remembered(file) is None
    ports = choose(file)
    assert remembered(file) == ports


def test_an_address_that_is_not_ours_is_an_error(file: Path) -> None:
    with pytest.raises(OSError, match="assign"):
        choose_ports(file, api_port=7400, client_hosts=("192.0.2.1",), peer_host=HOST)


def test_a_client_port_is_free_on_all_its_addresses(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.2", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        api_port = taken - 1
        ports = choose_ports(
            tmp_path / "ports", api_port=api_port, client_hosts=("127.0.0.1", "127.0.0.2"), peer_host=HOST
        )
        assert ports.client != taken
        assert is_free("127.0.0.2", ports.client)


def test_a_peer_port_that_the_cluster_was_told_stays(tmp_path: Path) -> None:
    file = tmp_path / "ports"
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        told = holder.getsockname()[1]
        for _ in range(2):
            ports = choose_ports(file, api_port=told - 1, client_hosts=(HOST,), peer_host=HOST, peer_port=told)
            assert ports.peer == told  # taken or not: etcd will say so
            assert ports.client != told
    assert remembered(file) == ports
