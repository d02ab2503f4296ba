"""What a handshake tells of a peer, on real connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from node.joining.handshake import Finding, Papers, examine
from node.trust.authority import ROLE_CLIENT, key_pem, new_key, request_of
from node.trust.material import Trust
from tests.support.joining import Cluster

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster")


def papers_of(trust: Trust, *, ca: Trust | None = None) -> Papers:
    files = ((ca or trust).ca_cert, trust.node_cert, trust.node_key)
    return Papers(*(file.read_bytes() for file in files))


@contextlib.asynccontextmanager
async def server(on_connection: Connected) -> AsyncIterator[str]:
    """Something that is no node."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await on_connection(reader, writer)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "127.0.0.1:%d" % listening.sockets[0].getsockname()[1]  # noqa: UP031  (of a tuple's second part)
    finally:
        listening.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_a_node_of_the_cluster_fits(cluster: Cluster) -> None:
    async with cluster.peer() as peer:
        assert (await examine(peer, papers_of(cluster.trust), now=time.time())).finding is Finding.FITS


async def test_no_descriptor_and_no_file_stays(cluster: Cluster) -> None:
    async with cluster.peer() as peer:
        await examine(peer, papers_of(cluster.trust), now=time.time())
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (names alone are wanted)
        for _ in range(5):
            await examine(peer, papers_of(cluster.trust), now=time.time())
        # grpc's side of a connection closes a moment later.
        assert len(os.listdir("/proc/self/fd")) < before + 5  # noqa: PTH208


async def test_a_node_of_another_cluster(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    async with cluster.peer() as peer:
        found = await examine(peer, papers_of(other.trust), now=time.time())
    assert found.finding is Finding.OTHER_AUTHORITY


async def test_a_node_that_does_not_accept_our_certificate(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    async with cluster.peer() as peer:
        found = await examine(peer, papers_of(other.trust, ca=cluster.trust), now=time.time())
    assert found.finding is Finding.REFUSED


@pytest.mark.parametrize("now", [0.0, 1e10])
async def test_a_certificate_of_another_time(cluster: Cluster, now: float) -> None:
    async with cluster.peer() as peer:
        found = await examine(peer, papers_of(cluster.trust), now=now)
    assert found.finding is Finding.OTHER_TIME
    assert "the clock here says" in found.detail


async def test_a_certificate_that_is_no_nodes(cluster: Cluster) -> None:
    key = new_key()
    async with cluster.signer() as signer:
        certificate = await signer.sign(request_of(key), role=ROLE_CLIENT, common_name="somebody")
    papers = papers_of(cluster.trust)
    impostor = grpc.aio.server()
    port = impostor.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(key_pem(key), certificate)], root_certificates=papers.ca, require_client_auth=True
        ),
    )
    await impostor.start()
    try:
        found = await examine(f"127.0.0.1:{port}", papers, now=time.time())
    finally:
        await impostor.stop(0)
    assert found.finding is Finding.NOT_A_NODE


async def test_plain_text(cluster: Cluster) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")

    async with server(greet) as address:
        assert (await examine(address, papers_of(cluster.trust), now=0.0)).finding is Finding.NOT_A_NODE


async def test_somebody_who_says_nothing(cluster: Cluster) -> None:
    """As a node that is frozen: its kernel accepts connections."""

    async def nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    async with server(nothing) as address:
        found = await examine(address, papers_of(cluster.trust), now=0.0, timeout_s=0.2)
    assert found.finding is Finding.UNREACHABLE
    assert "no answer within 0.2 s" in found.detail


async def test_somebody_who_hangs_up(cluster: Cluster) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with server(hang_up) as address:
        assert (await examine(address, papers_of(cluster.trust), now=0.0)).finding is Finding.UNREACHABLE


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "Connection refused"), ("nowhere.invalid:7400", "not known|resolution|no answer")],
)
async def test_nobody(cluster: Cluster, address: str, words: str) -> None:
    found = await examine(address, papers_of(cluster.trust), now=0.0)
    assert found.finding is Finding.UNREACHABLE
    assert re.search(words, found.detail)


async def test_no_address(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        await examine("nowhere", papers_of(cluster.trust), now=0.0)


def test_papers_are_not_shown(cluster: Cluster) -> None:
    assert "KEY" not in repr(papers_of(cluster.trust))
