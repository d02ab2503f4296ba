"""A long-running task, watched: its transitions and its output as they come, and its orderly end.

    node start                                # in another terminal
    python -m examples.watch_service --ticks 5

The service counts its ticks, tells them, and tidies up when it gets SIGTERM. Stop it with Ctrl-C: it is canceled, has
its grace period, and its last words are still shown. Kill the node with `kill -9` meanwhile and start it again: the
task is restarted, as its second attempt, and this program goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import pilfer

SERVICE = """
trap 'echo "tidying up after $n ticks"; exit 0' TERM
n=0
while [ "$n" -lt "$1" ]; do
  n=$((n + 1))
  echo "attempt $PILFER_ATTEMPT: tick $n"
  sleep "$2"
done
"""


async def show_transitions(client: pilfer.AsyncClient, task_id: str) -> pilfer.Task:
    """Prints each state of the task; gives its last one."""
    async for event in client.watch(task_id):
        task = event.task
        print(f"[{task.status}, attempt {task.attempt}{', cancel requested' if task.cancel_requested else ''}]")
        if task.status.is_terminal:
            return task
    raise AssertionError("a watch has no end of its own")


async def show_output(client: pilfer.AsyncClient, task_id: str) -> None:
    async for chunk in client.log(task_id, follow=True):
        sys.stdout.buffer.write(chunk.data)
        sys.stdout.flush()


async def run(address: str | None, ticks: int, interval_s: float) -> int:
    async with pilfer.AsyncClient(address) as client:
        task_id = await client.submit(
            "sh", "-c", SERVICE, "service", str(ticks), str(interval_s), name="ticker", cpu=0.1, grace_s=2.0
        )
        print(f"task {task_id}; Ctrl-C cancels it", flush=True)
        canceling = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, canceling.set)
        async with asyncio.TaskGroup() as group:
            canceler = group.create_task(cancel_when(canceling, client, task_id))
            last = group.create_task(show_transitions(client, task_id))
            await show_output(client, task_id)
            task = await last
            canceler.cancel()
    print(f"{task.status}: {task.reason}, exit code {task.exit_code}, {task.attempts_used} attempts")
    return 0 if task.succeeded else 1


async def cancel_when(event: asyncio.Event, client: pilfer.AsyncClient, task_id: str) -> None:
    await event.wait()
    print(f"cancel: {(await client.cancel(task_id)).step}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the service came to its own end, 1 otherwise."""
    parser = argparse.ArgumentParser(description="A long-running task, watched.")
    parser.add_argument("--address", help="unix:/path/node.sock or HOST:PORT; else PILFER_ADDRESS")
    parser.add_argument("--ticks", type=int, default=30)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds")
    given = parser.parse_args(arguments)
    return asyncio.run(run(given.address, given.ticks, given.interval))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pilfer.PilferError as error:
        sys.exit(str(error))
