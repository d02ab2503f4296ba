"""A network to break: a TCP proxy on loopback between a client and a real server.

`pass_` forwards, `refuse` ends every connection and takes no new one for long, `swallow` keeps connections open and
forwards nothing, as a cut cable does.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum, auto
from types import TracebackType
from typing import Self


class Mode(Enum):
    PASS = auto()
    REFUSE = auto()
    SWALLOW = auto()


class TcpProxy:
    """Forwards to `target` ("HOST:PORT"); an async context manager."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._mode = Mode.PASS
        self.address = ""
        #: Connections taken so far.
        self.taken = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._end_connections()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    def pass_(self) -> None:
        self._mode = Mode.PASS
        self._passes.set()

    def refuse(self) -> None:
        self._mode = Mode.REFUSE
        self._end_connections()

    def swallow(self) -> None:
        self._mode = Mode.SWALLOW
        self._passes.clear()

    def _end_connections(self) -> None:
        for connection in self._connections:
            connection.cancel()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A canceled handler would be reported as an error by asyncio's streams.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                if self._mode is not Mode.REFUSE:
                    await self._forward(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        except* (OSError, EOFError):
            pass  # a connection has ended, as connections do
        finally:
            far_writer.close()
            with contextlib.suppress(OSError):
                await far_writer.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self._passes.wait()
            sink.write(data)
            await sink.drain()
        raise EOFError("one side has closed: so must the other")
