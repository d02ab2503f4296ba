"""The blocking client: the logic of `pilfer/aio.py` over plain grpc, without an event loop and without a thread.

Over the blocking transport no coroutine of AsyncClient ever suspends, so one `send` runs it to its end. What it would
await there, grpc has answered before it returns (Ctrl-C included: grpc's blocking calls let signals through).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from pilfer import _transport
from pilfer._convert import Submission
from pilfer._nodes import Nodes
from pilfer._trust import TokenViews
from pilfer.address import Target
from pilfer.aio import BATCH, PATIENCE_S, TIMEOUT_S, AsyncClient, CancelResults, Ids, Tasks
from pilfer.types import (
    CancelResult,
    Invitation,
    LogChunk,
    NewToken,
    NodeView,
    RemovedHost,
    Status,
    Stream,
    Task,
    TaskEvent,
    TaskOptions,
    TokenView,
    Why,
)

T = TypeVar("T")


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("the blocking transport suspended; this is a defect of Pilfer")


def _iterate(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of an async generator that never suspends; closing this one closes that one."""

    async def following() -> T:
        return await anext(items)

    try:
        while True:
            try:
                item = _run(following())
            except StopAsyncIteration:
                return
            yield item
    finally:
        _run(items.aclose())


class _BlockingClient(AsyncClient):
    def _new_transport(self, target: Target) -> _transport.Transport:
        return _transport.BlockingTransport(target, has_others=len(self.targets) > 1)


class Client:
    """Talks to a cluster through one of its nodes, and waits for the answers. Safe for many threads.

    Arguments and errors are those of `pilfer.AsyncClient`. Iterators hold a call open until they are exhausted or
    closed: `with contextlib.closing(client.watch()) as events`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        certs: str | os.PathLike[str] | None = None,
        insecure: bool | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._client = _BlockingClient(
            address, certs=certs, insecure=insecure, timeout_s=timeout_s, patience_s=patience_s
        )

    @property
    def targets(self) -> tuple[Target, ...]:
        """The nodes that were named, the first choice first."""
        return self._client.targets

    def close(self) -> None:
        """Ends all calls and gives up the connections."""
        _run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        command: str | os.PathLike[str] | Submission,
        *args: str | os.PathLike[str],
        task_id: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> str:
        """Stores one task and gives its id; see `AsyncClient.submit`."""
        return _run(self._client.submit(command, *args, task_id=task_id, **options))

    def submit_many(
        self,
        specs: Iterable[Submission],
        *,
        batch: int = BATCH,
        on_progress: Callable[[int], None] | None = None,
        validate_only: bool = False,
    ) -> Ids:
        """Stores many tasks and gives their ids in order; see `AsyncClient.submit_many`."""
        return _run(self._client.submit_many(specs, batch=batch, on_progress=on_progress, validate_only=validate_only))

    @overload
    def status(self, ids: str, *, timeout_s: float | None = None) -> Task: ...  # type: ignore[overload-overlap]  # a str is an id, though also an Iterable[str]

    @overload
    def status(self, ids: Iterable[str], *, timeout_s: float | None = None) -> Tasks: ...

    def status(self, ids: str | Iterable[str], *, timeout_s: float | None = None) -> Task | Tasks:
        """What the cluster knows of a task, or of several; see `AsyncClient.status`."""
        return _run(self._client.status(ids, timeout_s=timeout_s))

    @overload
    def cancel(self, ids: str) -> CancelResult: ...  # type: ignore[overload-overlap]  # a str is an id, though also an Iterable[str]

    @overload
    def cancel(self, ids: Iterable[str]) -> CancelResults: ...

    def cancel(self, ids: str | Iterable[str]) -> CancelResult | CancelResults:
        """Asks for the end of one task, or of several; see `AsyncClient.cancel`."""
        return _run(self._client.cancel(ids))

    def list(
        self,
        *,
        status: Status | str | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> Generator[Task, None, None]:
        """Every task that matches, fetched page by page; see `AsyncClient.list`."""
        return _iterate(
            self._client.list(status=status, name=name, labels=labels, newest_first=newest_first, limit=limit)
        )

    def nodes(self, *, timeout_s: float | None = None) -> Nodes:
        """Every node that lives, then every host that is known and gone; see `AsyncClient.nodes`."""
        return _run(self._client.nodes(timeout_s=timeout_s))

    def drain(self, node: str, *, undo: bool = False, let_finish: bool = False) -> NodeView:
        """Lets a node claim nothing more, until undo; see `AsyncClient.drain`."""
        return _run(self._client.drain(node, undo=undo, let_finish=let_finish))

    def remove(self, node: str) -> RemovedHost:
        """Forgets a host whose node is gone, and bars its return; see `AsyncClient.remove`."""
        return _run(self._client.remove(node))

    def backup(self) -> Generator[tuple[bytes, int], None, None]:
        """The cluster's data at one moment, in parts, each with the size of the whole; see `AsyncClient.backup`."""
        return _iterate(self._client.backup())

    def why(self, task_id: str) -> Why:
        """Why a task does not start, node by node; see `AsyncClient.why`."""
        return _run(self._client.why(task_id))

    def create_token(self, *, ttl_s: float | None = None, uses: int = 0) -> NewToken:
        """Makes a join token, which is told this once; see `AsyncClient.create_token`."""
        return _run(self._client.create_token(ttl_s=ttl_s, uses=uses))

    def list_tokens(self) -> TokenViews:
        """The join tokens that are known, the oldest first."""
        return _run(self._client.list_tokens())

    def revoke_token(self, token_id: str) -> TokenView:
        """Nobody joins with this token any more; see `AsyncClient.revoke_token`."""
        return _run(self._client.revoke_token(token_id))

    def invite(self, name: str, *, ttl_s: float | None = None) -> Invitation:
        """Makes a certificate for a client elsewhere; see `AsyncClient.invite`."""
        return _run(self._client.invite(name, ttl_s=ttl_s))

    @overload
    def wait(self, ids: str, *, timeout_s: float | None = None) -> Task: ...  # type: ignore[overload-overlap]  # a str is an id, though also an Iterable[str]

    @overload
    def wait(self, ids: Iterable[str], *, timeout_s: float | None = None) -> Tasks: ...

    def wait(self, ids: str | Iterable[str], *, timeout_s: float | None = None) -> Task | Tasks:
        """Returns when a task, or all of several, have ended; see `AsyncClient.wait`."""
        return _run(self._client.wait(ids, timeout_s=timeout_s))

    def as_ended(self, ids: Iterable[str], *, timeout_s: float | None = None) -> Generator[Task, None, None]:
        """Each of the tasks once, as it ends; see `AsyncClient.as_ended`."""
        return _iterate(self._client.as_ended(ids, timeout_s=timeout_s))

    def watch(
        self,
        ids: str | Iterable[str] = (),
        *,
        labels: Mapping[str, str] | None = None,
        from_revision: int | None = None,
    ) -> Generator[TaskEvent, None, None]:
        """Every transition, in order and without end; see `AsyncClient.watch`."""
        return _iterate(self._client.watch(ids, labels=labels, from_revision=from_revision))

    def log(
        self,
        task_id: str,
        *,
        stream: Stream | str | None = None,
        follow: bool = False,
        tail_lines: int | None = None,
        attempt: int | None = None,
    ) -> Generator[LogChunk, None, None]:
        """The bytes that an attempt wrote; see `AsyncClient.log`."""
        return _iterate(self._client.log(task_id, stream=stream, follow=follow, tail_lines=tail_lines, attempt=attempt))
