"""A cluster of two whole nodes: one founded it and votes, the other joined it and is larger."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.node_process import LiveNode, live_node


def free_address() -> str:
    """HOST:PORT on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def two_nodes(directory: Path) -> Iterator[tuple[LiveNode, LiveNode]]:
    """`asked`, which has one CPU, and `runs`, which has two. directory: for the token."""
    address = free_address()
    with ExitStack() as stack:
        asked = stack.enter_context(live_node("--listen", address, "--cpu", "1", "--name", "asked"))
        token = asked.cli("token", "create")
        assert token.returncode == 0, token.stderr
        (directory / "token").write_text(token.stdout)
        joining = ("--listen", free_address(), "--peers", address, "--token-file", str(directory / "token"))
        runs = stack.enter_context(live_node(*joining, "--cpu", "2", "--name", "runs"))
        yield asked, runs
