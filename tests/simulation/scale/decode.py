"""What news of the queue costs one node in CPU: the simulation reads an event once for all nodes, a real node each for
itself."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from etcd import convert, keys, rpc_pb2
from node.core.model import Capacity
from node.core.queue_view import QueueView
from node.running.claimer import _id_text, _queued

BATCHES = 200


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds: of a message from its bytes on, without gRPC, and of each event in it."""

    message_us: float
    event_us: float

    def __str__(self) -> str:
        return f"{self.message_us:.0f} us a message, {self.event_us:.1f} us an event, without gRPC's own"


def measure() -> Cost:
    """Puts and deletes of as many tasks, in messages of one and of a hundred events."""
    one, hundred = asyncio.run(_per_message_us(1)), asyncio.run(_per_message_us(100))
    event_us = (hundred - one) / 99
    return Cost(one - event_us, event_us)


async def _per_message_us(width: int) -> float:
    view = QueueView("me", Capacity(4.0, 1 << 34))
    view.set_nodes({"peer": Capacity(4.0, 1 << 34)})
    messages = _messages(width)
    began = time.process_time()
    for raw in messages:
        response = rpc_pb2.WatchResponse.FromString(raw)
        for event in await convert.events(response.events):
            if event.is_delete:
                view.remove(_id_text(event.kv))
            elif found := _queued(event.kv):
                view.add(found[0], found[1], now=0.0, age_s=found[2])
    return (time.process_time() - began) * 1e6 / len(messages)


def _messages(width: int) -> list[bytes]:
    """As etcd sends them: a batch is queued, then claimed."""
    draw, messages = random.Random(1), []
    for number in range(BATCHES):
        ids = keys.new_task_ids(width, time.time(), draw)
        for kind in (rpc_pb2.Event.PUT, rpc_pb2.Event.DELETE):
            response = rpc_pb2.WatchResponse(watch_id=1)
            for task_id in ids:
                event = response.events.add(type=kind)
                event.kv.key = keys.queued_key(task_id)
                event.kv.mod_revision = number + 2
            messages.append(response.SerializeToString())
    return messages
