"""The load of a chaos run: a mixed crowd of tasks through random nodes, kept up by threads of its own.

Theory. What is judged is what a client was told, so the ledger is written before and after each call: *tried* before
it, *acknowledged* when the answer came. A call without an answer leaves its ids in doubt; they are tried again with the
same ids, through another node, until they are acknowledged: a task that was stored the first time must not become two.
Nothing here waits for a step of the faults, nor they for this: every call has a short time limit, and goes to a node
whose process runs, or seems to.

Threads: the feeder submits, the looker asks for the ends, the canceler asks for ends that would not come by themselves;
readers of logs and clients that die are in `followers.py` and `dying.py`.

Data directories should lie on a file system with a disk below it: on tmpfs every page that a task writes to its log is
counted as memory of all tasks of its node, until the log is removed.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import threading
import time
from collections.abc import Callable, Iterator

from pilfer import AlreadyExists, Client, InvalidRequest, NotFound, PilferError, Task, TaskSpec, new_task_id
from tests.chaos import forgetting
from tests.chaos.acts import Act, Acts, message_of
from tests.chaos.dying import DyingClients
from tests.chaos.followers import Followers, LogReaders
from tests.chaos.forgetting import Mark
from tests.chaos.gate import Gate
from tests.chaos.ledger import Ledger
from tests.support.lab import Lab

#: Flags that every node of the lab is to be started with.
FLAGS: tuple[str, ...] = (
    "--log-limit", "2M", "--scratch-limit", "32M", "--compaction-interval", "20s", *forgetting.FLAGS,
)  # fmt: skip
#: Tasks that are open at once; more than there is room for, so that the queue is never empty.
CROWD = 36
TICK_S = 0.2
LOOK_EVERY_S = 1.0
CALL_S = 2.0
CANCEL_SHARE = 0.08
#: Of acknowledged submits: sent again as they were, and sent with another command.
REPEAT_SHARE = 0.03
THREADS_END_S = 60.0


class Load:
    """A mixed crowd of tasks. `disk_was_full` is to be set as soon as a fault fills a disk."""

    def __init__(self, lab: Lab, rng: random.Random, tell: Callable[[str], None]) -> None:
        self.lab = lab
        self.ledger = Ledger()
        self.gate = Gate()
        self._tell = tell
        self._acts = Acts(lab.witness)
        self._feeding, self._choosing = random.Random(rng.random()), random.Random(rng.random())
        #: (when, id): cancels that are due, a heap.
        self._cancels: list[tuple[float, str]] = []
        self._cancels_lock = threading.Lock()
        self._stopped, self._finished = threading.Event(), threading.Event()
        self.logs = LogReaders(self, random.Random(rng.random()))
        self._followers = Followers(self, self._acts, random.Random(rng.random()))
        self._dying = DyingClients(self, self._acts, random.Random(rng.random()))
        self._threads: list[threading.Thread] = []
        #: Counts the recoveries of an operator: what was read across one is of two histories.
        self.epoch = 0

    # For the runner

    def start(self) -> None:
        """Begins, in threads."""
        self._acts.build()
        submitting = (self._feed, self._cancel, self._dying.run, *self._followers.loops())
        for run in (*submitting, self._look, self.logs.run):
            thread = threading.Thread(target=self._guarded, args=(run,), name=f"load {run.__qualname__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def pause(self) -> None:
        """No new work until resume; returns when every call under way has been answered or has failed."""
        self.gate.shut()

    def resume(self) -> None:
        """Goes on."""
        self.gate.open()

    def stop(self) -> None:
        """No new work for good. What looks for the ends of open tasks and reads logs goes on until `finish`."""
        self._stopped.set()
        self.gate.close()

    def finish(self) -> None:
        """After all tasks have ended: looks a last time and ends every thread."""
        self.stop()
        deadline = time.monotonic() + THREADS_END_S
        while (self.ledger.open() or self.logs.waiting) and time.monotonic() < deadline:
            self._finished.wait(TICK_S)
        self._finished.set()
        for thread in self._threads:
            thread.join(max(1.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.ledger.flaw(f"the instrument: {thread.name} does not end")

    @property
    def acknowledged(self) -> set[str]:
        """Ids of every task whose submit was acknowledged."""
        return self.ledger.all_acknowledged()

    @property
    def open(self) -> int:
        """How many acknowledged tasks are not known to have ended."""
        return len(self.ledger.open())

    @property
    def disk_was_full(self) -> bool:
        """A node's disk was full at some time: tasks may have failed to write. To be set by who fills it."""
        return self.ledger.disk_was_full

    @disk_was_full.setter
    def disk_was_full(self, was: bool) -> None:
        self.ledger.disk_was_full = was

    def summary(self) -> str:
        """What was done, in one line."""
        followed, logs = self._followers, self.logs
        return (
            f"{self.ledger.acknowledged_count} tasks acknowledged, {self.ledger.ended_count} seen to end, "
            f"{self.ledger.forgotten_unseen_count} forgotten unseen; "
            f"{followed.followed} followed ({followed.given_up} given up), {logs.read} logs read "
            f"(not read: {logs.unread()}), {len(self.ledger.cancels)} canceled, {self._dying.killed} clients killed"
        )

    def ends(self) -> str:
        """How tasks ended, by kind, in one line."""
        return ", ".join(f"{count} {what}" for what, count in sorted(self.ledger.counts.items()))

    # For the other threads

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def is_finished(self) -> bool:
        return self._finished.is_set()

    def pause_s(self, seconds: float) -> None:
        """Between two turns; ends early when no new work is wanted."""
        self._stopped.wait(seconds)

    def pause_until_finished_s(self, seconds: float) -> None:
        self._finished.wait(seconds)

    def addresses(self, rng: random.Random) -> str:
        """Every node that runs, in any order, as a client takes them."""
        names = [node.address for node in self.lab.up()]
        rng.shuffle(names)
        return ",".join(names)

    @contextlib.contextmanager
    def client(self, rng: random.Random, *, timeout_s: float = CALL_S) -> Iterator[Client]:
        """Through one node that runs. Raises Nobody."""
        up = self.lab.up()
        if not up:
            raise Nobody("no node runs")
        with rng.choice(up).client(patience_s=0.0, timeout_s=timeout_s) as client:
            yield client

    def submit(self, acts: list[tuple[str, Act]], rng: random.Random) -> bool:
        """Tries to store these, within the gate; whether it was acknowledged. What is not stays in doubt."""
        messages = [message_of(task_id, act) for task_id, act in acts]
        self.ledger.tried(acts)
        ids = [task_id for task_id, _ in acts]
        try:
            with self.client(rng) as client:
                client.submit_many(messages)
        except InvalidRequest as error:
            self.ledger.refused(ids)
            self.ledger.flaw(f"the instrument: a submit was refused: {error}")
            return False
        except AlreadyExists as error:
            self.ledger.flaw(f"NothingLost: a submit was taken for another task: {error}")
            return False
        except (PilferError, OSError):
            return False
        self.ledger.acknowledged(ids)
        return True

    def cancel_at(self, moment: float, task_id: str) -> None:
        """By time.monotonic()."""
        with self._cancels_lock:
            heapq.heappush(self._cancels, (moment, task_id))

    # The feeder

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # the top of a thread: a broken instrument must show
            self.ledger.flaw(f"the instrument: {run.__qualname__} ended with {error!r}")

    def _feed(self) -> None:
        while not self.is_stopped:
            with self.gate.turn() as is_open:
                if is_open:
                    self._repeat_doubtful()
                    self._top_up()
            self.pause_s(TICK_S)

    def _repeat_doubtful(self) -> None:
        before = time.monotonic() - 2 * CALL_S
        doubtful = self.ledger.doubtful()
        again = [(task_id, entry.act) for task_id, entry in doubtful.items() if entry.tried_again.at < before]
        if again:
            self.submit(again[:CROWD], self._feeding)

    def _top_up(self) -> None:
        rng = self._feeding
        # What is in doubt counts: of an outage of minutes thousands would come back at once.
        missing = min(CROWD - len(self.ledger.open()) - len(self.ledger.doubtful()), CROWD // 2)
        if missing <= 0:
            return
        acts = [(new_task_id(), self._acts.draw(rng)) for _ in range(missing)]
        if not self.submit(acts, rng):
            return
        now = time.monotonic()
        for task_id, act in acts:
            if rng.random() < CANCEL_SHARE or (act.lasts_s >= 10 and rng.random() < 0.3):
                # At once, while it may run, and now and then a second time.
                delay_s = rng.choice((0.0, 0.5, 2.0, 8.0))
                self.cancel_at(now + delay_s, task_id)
                if rng.random() < 0.3:
                    self.cancel_at(now + delay_s + rng.choice((0.0, 1.0)), task_id)
        if rng.random() < REPEAT_SHARE * len(acts):
            self._repeat_known(*rng.choice(acts))

    def _repeat_known(self, task_id: str, act: Act) -> None:
        """The same again is answered as it was; another command under this id is refused."""
        with contextlib.suppress(PilferError, OSError), self.client(self._feeding) as client:
            try:
                client.submit_many([message_of(task_id, act)])
            except AlreadyExists as error:
                self.ledger.flaw(f"NothingLost: the same submit again was refused: {error}")
            with contextlib.suppress(AlreadyExists):
                client.submit(TaskSpec("/bin/false"), task_id=task_id)
                self.ledger.flaw(f"NothingLost: task {task_id} was submitted with another command, and taken")

    # Cancels

    def _cancel(self) -> None:
        while not self.is_stopped:
            with self.gate.turn() as is_open:
                due = self._take_due() if is_open else []
                for task_id in due:
                    self._cancel_one(task_id)
            self.pause_s(TICK_S / 2)

    def _take_due(self) -> list[str]:
        due: list[str] = []
        with self._cancels_lock:
            while self._cancels and self._cancels[0][0] <= time.monotonic():
                due.append(heapq.heappop(self._cancels)[1])
        return due

    def _cancel_one(self, task_id: str) -> None:
        self.ledger.cancel_sent(task_id)
        try:
            with self.client(self._choosing) as client:
                answer = client.cancel(task_id)
        except (PilferError, OSError):
            # Not known whether it was done: asked again, as people do.
            self.cancel_at(time.monotonic() + 1.0, task_id)
            return
        self.ledger.cancel_answered(task_id, answer.step)

    # Ends

    def _look(self) -> None:
        rng = random.Random(1)
        unended: dict[str, Mark] = {}
        while not self.is_finished:
            unended = {task_id: unended.get(task_id, entry.tried) for task_id, entry in self.ledger.open().items()}
            asked = self.ledger.mark()
            try:
                with self.client(rng, timeout_s=2 * CALL_S) as client:
                    for task in self._statuses(client, unended):
                        unended[task.id] = asked
                        if task.status.is_terminal:
                            self._ended(task)
            except (PilferError, OSError):
                pass
            self.pause_until_finished_s(LOOK_EVERY_S)

    def _statuses(self, client: Client, unended: dict[str, Mark]) -> Iterator[Task]:
        """Of these, by when they had not ended yet."""
        ids = list(unended)
        if not ids:
            return
        try:
            yield from client.status(ids)
        except NotFound:
            for task_id in ids:
                try:
                    yield client.status(task_id)
                except NotFound as error:
                    self.ledger.not_found(task_id, unended[task_id], str(error))

    def _ended(self, task: Task) -> None:
        entry = self.ledger.ended(task)
        if entry is not None and entry.act.written:
            self.logs.ask(task, entry)


class Nobody(PilferError):  # noqa: N818  (named as the client's own errors)
    """No node runs."""
