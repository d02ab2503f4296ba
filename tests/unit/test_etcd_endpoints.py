"""Which endpoint is used: lists that change, and connections whose certificate may be too old."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from etcd import endpoints
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls, Endpoint, Endpoints
from etcd.errors import StoreUnavailable
from etcd.port import Range
from tests.support.wait import wait_until


class List:
    """Addresses that change."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    def __call__(self) -> tuple[str, ...]:
        return self.addresses


@pytest.fixture
def known() -> List:
    return List("h:1", "h:2", "h:3")


@pytest_asyncio.fixture
async def used(known: List) -> AsyncIterator[Endpoints]:
    made = Endpoints(known, None)
    yield made
    await made.close()


async def test_a_failure_goes_on_to_the_next_and_round(used: Endpoints) -> None:
    seen = []
    for _ in range(4):
        seen.append(used.current().address)
        used.rotate(used.current())
    assert seen == ["h:1", "h:2", "h:3", "h:1"]


async def test_a_failure_of_one_that_is_not_in_use_changes_nothing(used: Endpoints) -> None:
    first = used.current()
    used.rotate(first)
    used.rotate(first)
    assert used.current().address == "h:2"


async def test_the_list_may_change_while_it_is_used(used: Endpoints, known: List) -> None:
    used.rotate(used.current())
    assert used.current().address == "h:2"
    known.addresses = ("h:0", "h:2")  # the one in use stays
    assert (used.current().address, len(used)) == ("h:2", 2)
    known.addresses = ("h:7", "h:8")
    assert used.current().address == "h:7"
    known.addresses = ()
    assert (used.current().address, len(used)) == ("h:7", 2)


async def test_a_connection_to_an_address_that_vanished_is_closed_later(
    used: Endpoints, known: List, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def close(_self: Endpoints, endpoint: Endpoint) -> None:
        closed.append(endpoint.address)
        await endpoint.channel.close()

    monkeypatch.setattr(Endpoints, "_close", close)
    first = used.current()
    known.addresses = ("h:2",)
    assert used.current().address == "h:2"
    assert closed == []  # calls on it may still be under way
    monkeypatch.setattr(endpoints, "CLOSE_AFTER_S", 0.0)

    def is_closed() -> bool:
        used.current()
        return closed == ["h:1"]

    await wait_until(is_closed, what="it is closed")
    known.addresses = ("h:1",)
    assert used.current() is not first


async def test_one_that_vanished_and_was_given_up_as_too_old_is_closed_once(
    used: Endpoints, known: List, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voter is removed whose connection is older than an hour, and a stream on it breaks."""
    first = used.current()
    known.addresses = ("h:2",)
    assert used.current().address == "h:2"
    monkeypatch.setattr(endpoints, "CHANNEL_LIFE_S", 0.0)
    used.rotate(first)
    monkeypatch.setattr(endpoints, "CLOSE_AFTER_S", 0.0)
    assert used.current().address == "h:2"


async def test_papers_that_cannot_be_read_are_an_error_of_the_store(tmp_path: Path) -> None:
    """Too many open files, or a disk that does not answer: a call fails, and not whatever made it."""
    lacking = tmp_path / "none.pem"
    client = EtcdClient(["127.0.0.1:1"], ClientTls(lacking, lacking, lacking))
    with pytest.raises(StoreUnavailable, match=r"none\.pem"):
        await client.range(Range(b"a"))
    await client.close()


async def test_an_old_connection_that_fails_is_made_anew(used: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the certificate of its beginning, which may have run out meanwhile."""
    first = used.current()
    for _ in range(3):
        used.rotate(used.current())
    assert used.current() is first
    monkeypatch.setattr(endpoints, "CHANNEL_LIFE_S", 0.0)
    for _ in range(3):
        used.rotate(used.current())
    again = used.current()
    assert again.address == first.address
    assert again is not first


async def test_without_any_address_the_store_is_unavailable() -> None:
    async with EtcdClient(lambda: (), None) as client:
        with pytest.raises(StoreUnavailable, match="no address"):
            await client.range(Range(b"/a"))
    with pytest.raises(ValueError, match="at least one"):
        EtcdClient([], None)
