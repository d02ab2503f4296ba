"""The history checker finds each kind of illegal history, and passes legal ones.

Histories are made by hand, revision by revision; each wrong one breaks one rule, which must be the one that is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from etcd import cluster_codec, codec, keys
from etcd.port import Event, KeyValue, Put, Txn
from node.core import lifecycle
from node.core.model import Capacity, Node, Outcome, Reason, Removal, Requirements, Status, Task, TaskSpec
from tests.support.fake_etcd import FakeEtcd
from tests.support.history import History, judgement, read_history
from tests.support.tasks import DONE, GIVEN_BACK, HOST, NODE_A, NODE_B, NOW, new_task
from tests.support.turmoil import Turmoil
from tests.support.virtual_time import run_virtual

OTHER_HOST = "eeeeeeee-0000-4000-8000-00000000000e"


def node_value(node_id: str, host_id: str) -> bytes:
    return codec.encode_node(Node(node_id, host_id, "name", Capacity(1, 1), "1", NOW))


class Story:
    """Writes a history: one call, one revision."""

    def __init__(self) -> None:
        self.history = History()
        self.revision = 1

    def write(self, *changes: tuple[bytes, bytes | None], lease: int = 0) -> None:
        """(key, value) puts, (key, None) deletes."""
        self.revision += 1
        events = [
            Event(KeyValue(key, value or b"", self.revision, self.revision, 1, lease), is_delete=value is None)
            for key, value in changes
        ]
        self.history.apply(self.revision, events)

    def join(self, node_id: str = NODE_A, host_id: str = HOST, *, lease: int = 7) -> None:
        self.write((keys.node(node_id), node_value(node_id, host_id)), lease=lease)

    def leave(self, node_id: str = NODE_A) -> None:
        self.write((keys.node(node_id), None))

    def move(self, before: Task | None, after: Task) -> Task:
        """The record and its index in one revision, as they should be."""
        changes: list[tuple[bytes, bytes | None]] = []
        if before is not None and keys.index_key(before) != keys.index_key(after):
            changes.append((keys.index_key(before), None))
        self.write(*changes, (keys.index_key(after), index_value(after)), record(after))
        return after

    def rules(self, *, expect_ended: bool = False) -> set[str]:
        return {flaw.rule for flaw in self.history.finish(expect_ended=expect_ended)}


def index_value(task: Task) -> bytes:
    return codec.offer_value(task.spec.requirements) if task.status is Status.QUEUED else b""


def record(task: Task) -> tuple[bytes, bytes]:
    return keys.task(task.id), codec.encode_task(task)


def claim(task: Task, node_id: str = NODE_A) -> Task:
    return lifecycle.claim(task, node_id=node_id, host_id=HOST, now=NOW + 1)


def finish(task: Task) -> Task:
    return lifecycle.finish(task, DONE, started_at=NOW + 1, now=NOW + 2)


@pytest.fixture
def story() -> Story:
    return Story()


def running(story: Story, task: Task | None = None) -> Task:
    """A task that A, which lives, runs."""
    story.join()
    queued = story.move(None, task or new_task())
    return story.move(queued, claim(queued))


# -- what is legal passes -----------------------------------------------------------------------------------------


def legal_finish(story: Story, task: Task) -> None:
    story.move(task, finish(task))


def legal_failure(story: Story, task: Task) -> None:
    failed = Outcome(Reason.SETUP_FAILED, step="exec", errno=2)
    story.move(task, lifecycle.finish(task, failed, started_at=None, now=NOW + 2))


def legal_give_back(story: Story, task: Task) -> None:
    again = story.move(task, lifecycle.give_back(task, GIVEN_BACK, started_at=NOW + 1, now=NOW + 2))
    claimed = story.move(again, claim(again))
    story.move(claimed, finish(claimed))


def legal_requeue(story: Story, task: Task) -> None:
    story.leave()
    again = story.move(task, lifecycle.requeue(task, now=NOW + 5))
    story.join(NODE_B)
    claimed = story.move(again, claim(again, NODE_B))
    story.move(claimed, finish(claimed))


def legal_cancel(story: Story, task: Task) -> None:
    asked = story.move(task, lifecycle.request_cancel(task))
    story.move(asked, lifecycle.cancel(asked, now=NOW + 2, started_at=NOW + 1))


def legal_cancel_of_a_dead_nodes_task(story: Story, task: Task) -> None:
    asked = story.move(task, lifecycle.request_cancel(task))
    story.leave()
    story.move(asked, lifecycle.requeue(asked, now=NOW + 5))


def legal_forgetting(story: Story, task: Task) -> None:
    done = story.move(task, finish(task))
    story.write((keys.index_key(done), None), (keys.task(done.id), None))


@pytest.mark.parametrize(
    "go_on",
    [
        legal_finish, legal_failure, legal_give_back, legal_requeue, legal_cancel, legal_cancel_of_a_dead_nodes_task,
        legal_forgetting,
    ],
)  # fmt: skip
def test_a_legal_history_passes(story: Story, go_on: Callable[[Story, Task], None]) -> None:
    task = running(story, new_task(TaskSpec("/bin/true", requirements=Requirements(cpu=2))))
    go_on(story, task)
    assert [str(flaw) for flaw in story.history.finish([task.id], expect_ended=True)] == []
    # Whatever is there at the end: what was forgotten was applied as well.
    assert story.history.revisions == story.revision - 1
    assert story.history.requeues == (go_on in (legal_requeue, legal_cancel_of_a_dead_nodes_task))


# -- what is not is found -----------------------------------------------------------------------------------------


def two_index_keys(story: Story) -> None:
    task = new_task()
    story.move(None, task)
    story.write((keys.running_key(NODE_A, task.id), b""))


def no_index_key(story: Story) -> None:
    task = story.move(None, new_task())
    story.write((keys.queued_key(task.id), None))


def wrong_index_key(story: Story) -> None:
    task = running(story)
    story.write((keys.index_key(task), None), (keys.running_key(NODE_B, task.id), b""))


def index_without_record(story: Story) -> None:
    story.write((keys.queued_key(new_task().id), b""))


def wrong_offer(story: Story) -> None:
    task = new_task(TaskSpec("/bin/true", requirements=Requirements(cpu=4)))
    story.write((keys.queued_key(task.id), b""), record(task))


def two_steps_at_once(story: Story) -> None:
    story.join()
    task = story.move(None, new_task())
    story.move(task, finish(claim(task)))


def born_running(story: Story) -> None:
    story.join()
    story.move(None, claim(new_task()))


def another_spec(story: Story) -> None:
    task = running(story)
    story.move(task, replace(finish(task), spec=TaskSpec("/bin/false")))


def rewritten_without_a_cause(story: Story) -> None:
    task = story.move(None, new_task())
    story.move(task, task)


def a_skipped_attempt(story: Story) -> None:
    story.join()
    task = story.move(None, new_task())
    claimed = claim(task)
    jumped = replace(claimed, attempt=2, attempts=(replace(claimed.attempts[0], number=2),))
    story.move(task, jumped)


def an_attempt_taken_back(story: Story) -> None:
    task = running(story)
    again = story.move(task, lifecycle.give_back(task, GIVEN_BACK, started_at=NOW + 1, now=NOW + 2))
    second = story.move(again, claim(again))
    story.move(second, finish(task))


def ended_twice(story: Story) -> None:
    task = running(story)
    done = story.move(task, finish(task))
    story.move(done, lifecycle.cancel(task, now=NOW + 3))


def ended_and_queued_again(story: Story) -> None:
    task = running(story)
    done = story.move(task, finish(task))
    story.move(done, lifecycle.give_back(task, GIVEN_BACK, started_at=NOW + 1, now=NOW + 2))


def claimed_without_a_node_key(story: Story) -> None:
    task = story.move(None, new_task())
    story.move(task, claim(task))


def finished_after_its_node_was_gone(story: Story) -> None:
    task = running(story)
    story.leave()
    story.move(task, finish(task))


def given_back_after_its_node_was_gone(story: Story) -> None:
    task = running(story)
    story.leave()
    story.move(task, lifecycle.give_back(task, GIVEN_BACK, started_at=NOW + 1, now=NOW + 2))


def cancel_confirmed_after_its_node_was_gone(story: Story) -> None:
    task = running(story)
    asked = story.move(task, lifecycle.request_cancel(task))
    story.leave()
    story.move(asked, lifecycle.cancel(asked, now=NOW + 2))


def requeued_while_its_node_lives(story: Story) -> None:
    task = running(story)
    story.move(task, lifecycle.requeue(task, now=NOW + 5))


def a_record_deleted_while_it_runs(story: Story) -> None:
    task = running(story)
    story.write((keys.index_key(task), None), (keys.task(task.id), None))


def forgotten_and_made_anew(story: Story) -> None:
    task = running(story)
    done = story.move(task, finish(task))
    story.write((keys.index_key(done), None), (keys.task(done.id), None))
    story.move(None, lifecycle.submit(task.id, task.spec, now=NOW))


def two_nodes_on_one_host(story: Story) -> None:
    story.join(NODE_A)
    story.join(NODE_B)


def a_node_that_comes_back(story: Story) -> None:
    story.join()
    story.leave()
    story.join()


def a_node_key_without_a_lease(story: Story) -> None:
    story.join(lease=0)


def a_removed_host_that_comes_back(story: Story) -> None:
    story.write((keys.removed_key(HOST), cluster_codec.encode_removal(Removal("name", NOW))))
    story.join(NODE_A, OTHER_HOST)
    assert story.rules() == set(), "another host may come"
    story.join(NODE_B, HOST)


@pytest.mark.parametrize(
    ("tell", "rule"),
    [
        (two_index_keys, "StatusAgreesWithRecord"),
        (no_index_key, "StatusAgreesWithRecord"),
        (wrong_index_key, "StatusAgreesWithRecord"),
        (index_without_record, "StatusAgreesWithRecord"),
        (wrong_offer, "StatusAgreesWithRecord"),
        (two_steps_at_once, "LegalTransition"),
        (born_running, "LegalTransition"),
        (another_spec, "LegalTransition"),
        (rewritten_without_a_cause, "LegalTransition"),
        (a_skipped_attempt, "AttemptsAscend"),
        (an_attempt_taken_back, "AttemptsAscend"),
        (ended_twice, "TerminalIsFinal"),
        (ended_and_queued_again, "TerminalIsFinal"),
        (claimed_without_a_node_key, "ClaimNeedsLiveLease"),
        (finished_after_its_node_was_gone, "ClaimNeedsLiveLease"),
        (given_back_after_its_node_was_gone, "ClaimNeedsLiveLease"),
        (cancel_confirmed_after_its_node_was_gone, "ClaimNeedsLiveLease"),
        (requeued_while_its_node_lives, "RequeueNeedsDeadOwner"),
        (a_record_deleted_while_it_runs, "NothingLost"),
        (forgotten_and_made_anew, "NothingLost"),
        (two_nodes_on_one_host, "OneNodePerHost"),
        (a_node_that_comes_back, "OneNodePerHost"),
        (a_node_key_without_a_lease, "OneNodePerHost"),
        (a_removed_host_that_comes_back, "RemovedStaysOut"),
    ],
)
def test_an_illegal_history_is_found(story: Story, tell: Callable[[Story], None], rule: str) -> None:
    tell(story)
    assert rule in story.rules()


def test_what_never_ended_is_found_at_the_end(story: Story) -> None:
    story.move(None, new_task())
    assert story.rules() == set()
    assert story.rules(expect_ended=True) == {"EventuallyTerminal"}


def test_an_acknowledged_submit_without_a_record_is_found(story: Story) -> None:
    lost = new_task()
    assert {flaw.rule for flaw in story.history.finish([lost.id])} == {"NothingLost"}


def test_a_record_that_cannot_be_read_is_found(story: Story) -> None:
    story.write((keys.task(new_task().id), b"\xff"))
    assert story.rules() == {"LegalTransition"}


# -- read from a store ----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        yield fake


async def test_a_history_is_read_from_the_first_revision_on(etcd: FakeEtcd) -> None:
    lease = await etcd.lease_grant(60)
    await etcd.txn(Txn(success=(Put(keys.node(NODE_A), node_value(NODE_A, HOST), lease=lease.id),)))
    task = new_task()
    steps = [task, claim(task), finish(claim(task))]
    for step in steps[:2]:
        await etcd.txn(Txn(success=(Put(keys.index_key(step), index_value(step)), Put(*record(step)))))
    history = await read_history(etcd)
    # The queued key was left behind.
    assert {flaw.rule for flaw in history.finish()} == {"StatusAgreesWithRecord"}
    told = judgement(history, history.flaws)
    assert told["flaws_in_all"] == 1
    assert told["transitions"] == 2


@pytest.mark.parametrize("seed", range(5))
def test_what_a_random_crowd_does_through_the_store_is_legal(seed: int) -> None:
    async def crowd() -> History:
        async with FakeEtcd() as fake:
            await Turmoil(seed, fake).run(steps=50)
            return await read_history(fake)

    history = run_virtual(crowd())
    # The crowd's node keys hold no records and have no leases.
    assert [str(flaw) for flaw in history.finish() if flaw.rule != "OneNodePerHost"] == []
    assert history.transitions > 10


# -- what compaction tore out, and what an operator went back to -------------------------------------------------------


def kvs_of(*tasks: Task, nodes: tuple[str, ...] = (NODE_A,), revision: int = 900) -> list[KeyValue]:
    """Everything that there is at one revision."""
    written = [
        (keys.node(node_id), node_value(node_id, f"{HOST[:-1]}{number}"), 7) for number, node_id in enumerate(nodes)
    ]
    for task in tasks:
        written += [(keys.index_key(task), index_value(task), 0), (*record(task), 0)]
    return [KeyValue(key, value, revision, revision, 1, lease) for key, value, lease in written]


def skip(story: Story, *tasks: Task, nodes: tuple[str, ...] = (NODE_A,), may_have_forgotten: bool = False) -> set[str]:
    story.history.skip_to(900, kvs_of(*tasks, nodes=nodes), may_have_forgotten=may_have_forgotten)
    return story.rules()


def test_a_gap_over_which_all_went_on_is_bridged(story: Story) -> None:
    story.join()
    first, second = story.move(None, new_task()), story.move(None, new_task())
    assert skip(story, finish(claim(first)), claim(second)) == set()
    story.revision = 900
    story.move(claim(second), finish(claim(second)))
    assert story.rules() == set()


def test_over_a_gap_nothing_is_lost(story: Story) -> None:
    story.join()
    story.move(None, new_task())
    assert skip(story) == {"NothingLost"}


def test_over_a_long_gap_a_task_may_have_ended_and_been_forgotten(story: Story) -> None:
    story.join()
    story.move(None, new_task())
    assert skip(story, may_have_forgotten=True) == set()


def test_over_a_gap_a_terminal_state_stays(story: Story) -> None:
    story.join()
    task = story.move(None, new_task())
    claimed = story.move(task, claim(task))
    story.move(claimed, finish(claimed))
    assert skip(story, claimed) == {"TerminalIsFinal"}


def test_over_a_gap_attempts_ascend(story: Story) -> None:
    story.join()
    task = story.move(None, new_task())
    story.move(task, claim(task))
    assert skip(story, task) == {"AttemptsAscend"}


def test_over_a_gap_no_node_comes_back(story: Story) -> None:
    story.join()
    story.leave()
    assert skip(story, nodes=(NODE_A,)) == {"OneNodePerHost"}


def test_who_went_in_a_gap_does_not_come_back(story: Story) -> None:
    story.join()
    assert skip(story, nodes=(NODE_B,)) == set()
    story.revision = 900
    story.join()
    assert story.rules() == {"OneNodePerHost"}


def test_in_a_snapshot_record_and_index_agree(story: Story) -> None:
    task = new_task()
    story.history.begin_anew(900, [kv for kv in kvs_of(task) if kv.key != keys.index_key(task)])
    assert story.rules() == {"StatusAgreesWithRecord"}


def test_after_a_recovery_all_begins_anew(story: Story) -> None:
    story.join()
    task = story.move(None, new_task())
    claimed = story.move(task, claim(task))
    story.move(claimed, finish(claimed))
    story.leave()
    story.history.begin_anew(5, kvs_of(claimed))
    assert story.rules() == set()
    assert set(story.history.tasks) == {task.id}
