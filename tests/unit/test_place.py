"""Which address others are told."""

from __future__ import annotations

import ipaddress

import pytest

from node.config_values import Listen
from node.joining.place import Place, advertised_host, first_address, is_wildcard, source_address

HERE = Listen("127.0.0.1", 7400)


def test_without_a_port_nobody_else_reaches_it() -> None:
    assert advertised_host(None, None, ()) == "127.0.0.1"


def test_what_is_listened_on_is_told() -> None:
    assert advertised_host(Listen("10.1.2.3", 7400), None, ()) == "10.1.2.3"
    assert advertised_host(Listen("host.example", 7400), None, ()) == "host.example"


def test_advertise_comes_first() -> None:
    assert advertised_host(Listen("0.0.0.0", 7400), "192.0.2.7", ()) == "192.0.2.7"


def test_of_a_wildcard_the_way_to_the_peers_counts() -> None:
    assert source_address(HERE) == "127.0.0.1"
    assert advertised_host(Listen("0.0.0.0", 7400), None, (HERE,)) == "127.0.0.1"


def test_peers_that_cannot_be_found_are_passed_over() -> None:
    nowhere = Listen("no-such-host.invalid", 7400)
    assert advertised_host(Listen("0.0.0.0", 7400), None, (nowhere, HERE)) == "127.0.0.1"


def test_first_address_is_no_loopback() -> None:
    found = first_address()
    assert found is None or not ipaddress.ip_address(found).is_loopback


@pytest.mark.parametrize(("host", "is_one"), [("0.0.0.0", True), ("::", True), ("10.0.0.1", False), ("host", False)])
def test_wildcards(host: str, is_one: bool) -> None:
    assert is_wildcard(host) is is_one


def test_without_a_port() -> None:
    place = Place.of(None, None, ())
    assert (place.address, place.bind_hosts, place.names) == ("", ("127.0.0.1",), ())


def test_an_open_port_is_chosen() -> None:
    place = Place.of(Listen("localhost", 0), None, ())
    assert place.listen is not None
    assert place.listen.port > 0
    assert place.address == f"localhost:{place.listen.port}"
    assert place.bind_hosts == ("127.0.0.1",) or "::1" in place.bind_hosts


def test_of_another_address_loopback_is_served_too() -> None:
    place = Place.of(Listen("192.0.2.7", 7400), "node.example", ())
    assert place.bind_hosts == ("127.0.0.1", "192.0.2.7")
    assert place.names == ("node.example", "192.0.2.7")
    assert place.address == "node.example:7400"


def test_a_wildcard_stands_alone() -> None:
    assert Place.of(Listen("0.0.0.0", 7400), "192.0.2.7", ()).bind_hosts == ("0.0.0.0",)


def test_an_address_with_colons_is_written_in_brackets() -> None:
    assert Place.of(Listen("::1", 7400), None, ()).address == "[::1]:7400"
