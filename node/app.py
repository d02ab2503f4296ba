"""`node start`: from settings to exit status. Signals, the data directory's lock, and what is told to people."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import sys

from etcd.binary import EtcdNotFound
from etcd.errors import StoreError
from etcd.server import EtcdNotReady
from isolation.errors import HostLacks, SpawnerDied
from node import loop_errors
from node.assembly import Assembly
from node.cli.visible import visible
from node.cluster.founding import WrongCluster
from node.cluster.host_record import HostRefused
from node.cluster.membership import MembershipError
from node.config import Settings
from node.datadir import DataDir, DataDirError, explain
from node.files import remove_temporaries
from node.joining.foothold import stand
from node.joining.peer_answers import JoinRefused
from node.joining.place import Place
from node.listening import AddressInUse
from node.log_lines import start_logging
from node.trust.authority import TrustError

log = logging.getLogger(__name__)

#: What keeps a node from starting, or ends it, and is the user's to mend: told in one line, without a traceback.
REFUSALS = (
    AddressInUse, DataDirError, EtcdNotFound, EtcdNotReady, HostLacks, HostRefused, JoinRefused, MembershipError,
    OSError, SpawnerDied, StoreError, TrustError, WrongCluster,
)  # fmt: skip

#: Errors of the system that speak of the data directory, whatever call they came from.
OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def main(settings: Settings, join_token: str | None = None) -> int:
    """Runs a node until SIGTERM or SIGINT. Exit status: 0 stopped in order, 1 could not start or broke.

    join_token: needed where settings.peers are to be joined for the first time.
    """
    start_logging(settings.log_level)
    try:
        asyncio.run(_until_signal(settings, join_token))
    except REFUSALS as error:
        print(f"node: {visible(_words(error, settings))}", file=sys.stderr)  # noqa: T201  (the command line's own error)
        return 1
    except BaseExceptionGroup as group:
        refused, others = group.split(REFUSALS)
        if refused is None or others is not None:
            log.exception("the node broke; its tasks are requeued by its peers, or by whoever starts next")
            return 1
        print(f"node: {visible(_words(_first(refused), settings))}", file=sys.stderr)  # noqa: T201  (the command line's own error)
        return 1
    return 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _words(error: BaseException, settings: Settings) -> str:
    """A disk that is full may show in any call that writes: then with what to do about it."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return explain(settings.data_dir, error)
    return str(error)


async def _until_signal(settings: Settings, join_token: str | None) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("second signal: killing what still runs")
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_errors.handle)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await serve(settings, join_token, stop=stop, hurry=hurry)


async def serve(settings: Settings, join_token: str | None, *, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Runs a node until `stop`; `hurry` cuts the stop short. Prints one line on stdout when it serves."""
    with DataDir.open(settings.data_dir) as data:
        _clear_up(data)
        place = Place.of(settings.listen, settings.advertise, settings.peers)
        started = asyncio.Event()

        async def whole() -> None:
            foothold = await stand(settings, place, data, join_token)
            async with contextlib.AsyncExitStack() as stack:
                await Assembly(settings, place, data, foothold, on_start=started.set).run(stack, stop, hurry)

        await until_started_or_stopped(asyncio.create_task(whole(), name="node"), started, stop)


def _clear_up(data: DataDir) -> None:
    """Removes what a node that was killed left half written: a backup's copy of the database may be gigabytes. The lock
    tells that nobody is at it. A failure keeps no node from starting."""
    try:
        for name in remove_temporaries(data.path):
            log.info("removed %s, which a node that was killed here left", data.path / name)
    except OSError as error:
        log.warning("what a node that was killed left in %s cannot be removed: %s", data.path, error)


async def until_started_or_stopped(node: asyncio.Task[None], started: asyncio.Event, stop: asyncio.Event) -> None:
    """Once it has started the node stops in order by itself; before, there is nothing to give back, and a start may
    wait for peers or a quorum for ever: it is cancelled."""
    waits = [asyncio.create_task(started.wait(), name="started"), asyncio.create_task(stop.wait(), name="stop")]
    try:
        await asyncio.wait([node, *waits], return_when=asyncio.FIRST_COMPLETED)
        if not started.is_set() and not node.done():
            log.info("stopped before it served")
            node.cancel()
            await asyncio.wait([node])
            if node.cancelled():
                return
        await node
    finally:
        for task in waits:
            task.cancel()
        await asyncio.wait(waits)
