"""Records read before they are claimed: by one node each, however many nodes there are."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pytest

from etcd.store import TaskStore, Versioned
from node.core.ids import new_task_ids
from node.core.model import Capacity, Requirements
from node.core.queue_view import QueueView
from node.running.read_ahead import HELD_MAX, WORTH_READING, ReadAhead
from tests.support.tasks import NOW, new_task

CAPACITY = Capacity(4.0, 1 << 34)
TASKS = new_task_ids(500, NOW, random.Random(1))


def _read_ahead(me: str, nodes: list[str]) -> ReadAhead:
    view = QueueView(me, CAPACITY)
    view.set_nodes(dict.fromkeys(nodes, CAPACITY))
    for task_id in TASKS:
        view.add(task_id, Requirements(), now=0.0)
    return ReadAhead(cast(TaskStore, None), view)  # what is wanted is asked without reading


def _nodes(count: int) -> list[str]:
    draw = random.Random(2)
    return [str(uuid.UUID(int=draw.getrandbits(128), version=4)) for _ in range(count)]


def test_a_node_alone_reads_the_oldest() -> None:
    (me,) = _nodes(1)
    assert list(_read_ahead(me, [me]).wanted()) == TASKS[:HELD_MAX]


@pytest.mark.parametrize("count", [2, 8, 60])
def test_no_record_is_read_ahead_by_two(count: int) -> None:
    """Each node once read the 64 oldest: sixty of them read every record 25 times."""
    nodes = _nodes(count)
    wanted = Counter(task_id for me in nodes for task_id in _read_ahead(me, nodes).wanted())
    assert wanted
    assert set(wanted.values()) == {1}


def test_so_few_that_reading_them_saves_nothing_are_left_to_their_claims() -> None:
    nodes = _nodes(400)  # each finds about one that is its own
    found = [len(_read_ahead(me, nodes).wanted()) for me in nodes]
    assert all(count == 0 or count >= WORTH_READING for count in found)
    assert found.count(0) > 300


def test_what_is_held_is_not_read_again() -> None:
    nodes = _nodes(2)
    read_ahead = _read_ahead(nodes[0], nodes)
    first, *_ = read_ahead.wanted()
    read_ahead.hold(Versioned(new_task(id=first), 1))
    assert first not in read_ahead.wanted()


async def test_a_record_that_changed_while_it_was_read_is_not_held_for_the_next_read_of_it() -> None:
    """Claimed and given back by a peer while the first read is under way: its offer comes again, and is read again,
    before the first read is answered. Held, the old record would cost the claim, and the offer with it."""
    answers: list[asyncio.Future[list[Versioned]]] = []

    class Slow:
        async def read_each(self, task_ids: Sequence[str]) -> list[Versioned]:
            answers.append(asyncio.get_running_loop().create_future())
            return await answers[-1]

    (task_id,) = TASKS[:1]
    view = QueueView("me", CAPACITY)
    view.add(task_id, Requirements(), now=0.0)
    read_ahead = ReadAhead(cast(TaskStore, Slow()), view)
    first = asyncio.create_task(read_ahead.read([task_id]))
    await asyncio.sleep(0)
    read_ahead.drop(task_id)  # claimed
    read_ahead.drop(task_id)  # and queued again
    second = asyncio.create_task(read_ahead.read([task_id]))
    await asyncio.sleep(0)
    old, new = (Versioned(new_task(id=task_id), revision) for revision in (1, 9))
    answers[0].set_result([old])
    await first
    assert read_ahead.take(task_id) is None
    answers[1].set_result([new])
    await second
    assert read_ahead.take(task_id) == new


async def test_two_looks_in_one_round_read_once_and_equal_reads_are_told_apart() -> None:
    """Two tasks end in one round of the loop: the second look comes before the first read has begun."""
    answers: list[asyncio.Future[list[Versioned]]] = []

    class Slow:
        async def read_each(self, task_ids: Sequence[str]) -> list[Versioned]:
            answers.append(asyncio.get_running_loop().create_future())
            return await answers[-1]

    view = QueueView("me", CAPACITY)
    for task_id in TASKS[:3]:
        view.add(task_id, Requirements(), now=0.0)
    read_ahead = ReadAhead(cast(TaskStore, Slow()), view)
    first = asyncio.create_task(read_ahead.read(read_ahead.wanted()))
    assert not read_ahead.wanted(), "they are under way"
    # Equal ones can still be, where all was dropped in between; they may be answered in any order.
    read_ahead.drop(TASKS[0])
    second = asyncio.create_task(read_ahead.read(TASKS[1:3]))
    await asyncio.sleep(0)
    answers[1].set_result([])
    await second
    read_ahead.drop(TASKS[1])
    answers[0].set_result([Versioned(new_task(id=task_id), 1) for task_id in TASKS[:3]])
    await first
    assert [read_ahead.take(task_id) is not None for task_id in TASKS[:3]] == [False, False, True]
