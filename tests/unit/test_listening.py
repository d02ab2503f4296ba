"""Whether this host can listen where it is told to."""

from __future__ import annotations

import socket

import pytest

from node.config_values import Listen
from node.listening import AddressInUse, address_of, free_port, try_listen


def test_an_address_is_free_after_the_try() -> None:
    here = Listen("127.0.0.1", free_port(Listen("127.0.0.1", 0)))
    try_listen(here)
    try_listen(here)
    with socket.create_server((here.host, here.port)), pytest.raises(AddressInUse, match=f"on {here} .*in use"):
        try_listen(here)


def test_an_address_of_another_machine_is_refused() -> None:
    for port in (0, 7400):
        with pytest.raises(AddressInUse, match=f"192.0.2.7:{port} .*this host has not; choose another --listen"):
            (try_listen if port else free_port)(Listen("192.0.2.7", port))


@pytest.mark.parametrize("host", ["nohost.invalid", "a..b", "x" * 64])
def test_a_name_that_nobody_knows_is_named(host: str) -> None:
    for call in (try_listen, free_port, address_of):
        with pytest.raises(AddressInUse) as caught:
            call(Listen(host, 7400))
        assert f"the host {host} has no address" in str(caught.value)
        assert "give --listen an address of this machine" in str(caught.value)


def test_what_a_dead_nodes_connections_leave_does_not_count() -> None:
    """In TIME_WAIT on the side that ended the connection: the node's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = Listen(*server.getsockname())
        client = socket.create_connection((here.host, here.port))
        served, _ = server.accept()
        served.close()
        client.close()
    try_listen(here)
