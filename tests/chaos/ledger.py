"""Who was told what: every task that was tried, what was acknowledged, asked, and seen of its end. Shared by threads.

Invariants: an id that was acknowledged is open until its end was seen, and then never again; what is open has its act,
what has ended only a few words, so that an hour of tasks fits into little memory. Acknowledged ids are written down by
themselves, when the answer comes: what becomes of them afterwards is compared with that (`lost`), and not derived.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pilfer import CancelStep, Status, Task
from tests.chaos.acts import NOTHING_ASKED, Act, Asked, judge
from tests.chaos.forgetting import Mark, may_be_forgotten

#: Told in full up to here.
FLAWS_TOLD = 100


@dataclass(slots=True)
class Entry:
    """A task whose end was not seen yet."""

    act: Act
    #: Before the first try: it may have been stored by that, and have ended since.
    tried: Mark
    #: Of the newest try.
    tried_again: Mark
    asked: Asked = NOTHING_ASKED


@dataclass(frozen=True, slots=True)
class Ended:
    """What is kept of a task whose end was seen."""

    status: Status
    seen_at: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """An acknowledged cancel; the moment is that of the answer, by time.monotonic() (the witness's clock)."""

    step: CancelStep
    at: float


class Ledger:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Tried, and neither acknowledged nor refused.
        self._doubtful: dict[str, Entry] = {}
        self._acknowledged: set[str] = set()
        self._open: dict[str, Entry] = {}
        self._ended: dict[str, Ended] = {}
        #: Acknowledged, and forgotten by the cluster before anybody saw their ends.
        self._forgotten_unseen: set[str] = set()
        #: All that was ever sent.
        self._tried = 0
        self._newest_ended: deque[str] = deque(maxlen=1000)
        #: What a task that beats reserves, for the sums of the witness; how often it may run.
        self.cpu_of: dict[str, float] = {}
        self.runs_max_of: dict[str, int] = {}
        self.cancels: dict[str, Cancel] = {}
        #: Of the tasks that beat, those that ran to their own end: with the number of the attempt that did.
        self.beating_complete: list[tuple[str, int]] = []
        self.flaws: list[str] = []
        self.flaws_in_all = 0
        #: Some node's disk was full at some time.
        self.disk_was_full = False
        self.counts: dict[str, int] = {}

    # What is written down

    def tried(self, acts: Iterable[tuple[str, Act]]) -> None:
        """Before the call: whatever comes of it, these may exist."""
        with self._lock:
            mark = self._mark()
            for task_id, act in acts:
                if task_id in self._acknowledged:
                    continue  # another thread has its answer already
                if task_id in self._doubtful:
                    self._doubtful[task_id].tried_again = mark
                    continue
                self._tried += 1
                self._doubtful[task_id] = Entry(act, tried=mark, tried_again=mark)
                if act.beats:
                    self.cpu_of[task_id] = act.cpu
                if act.runs_max < 10:
                    self.runs_max_of[task_id] = act.runs_max

    def acknowledged(self, ids: Iterable[str]) -> None:
        with self._lock:
            for task_id in ids:
                self._acknowledged.add(task_id)
                entry = self._doubtful.pop(task_id, None)
                if entry is not None:
                    self._open[task_id] = entry

    def refused(self, ids: Iterable[str]) -> None:
        """Surely not stored."""
        with self._lock:
            for task_id in ids:
                self._doubtful.pop(task_id, None)

    def cancel_sent(self, task_id: str) -> None:
        """Before the call."""
        self._ask(task_id, cancel_sent=True)

    def cancel_answered(self, task_id: str, step: CancelStep) -> None:
        with self._lock:
            entry = self._open.get(task_id)
        if step is CancelStep.NOT_FOUND and entry is not None:
            self.flaw(f"NothingLost: task {task_id} was acknowledged, and a cancel does not find it")
        if step is CancelStep.CANCELED:
            self._ask(task_id, canceled_in_queue=True)
        if step in (CancelStep.CANCELED, CancelStep.REQUESTED):
            # The first answer counts: a second cancel finds what the first has done.
            self.cancels.setdefault(task_id, Cancel(step, time.monotonic()))

    def _ask(self, task_id: str, **what: bool) -> None:
        with self._lock:
            entry = self._open.get(task_id) or self._doubtful.get(task_id)
            if entry is not None:
                entry.asked = replace(entry.asked, **what)

    def ended(self, task: Task) -> Entry | None:
        """A terminal record was seen; gives what was known of a task whose end was not seen before."""
        with self._lock:
            entry = self._open.pop(task.id, None)
            if entry is None:
                return None
            self._ended[task.id] = Ended(task.status, time.monotonic())
            self._newest_ended.append(task.id)
            if entry.act.beats and task.status is Status.COMPLETE:
                self.beating_complete.append((task.id, task.attempt))
            reason = f"{task.status} ({task.reason})" if task.status is not Status.COMPLETE else str(task.reason)
            words = f"{entry.act.kind}: {reason}"
            self.counts[words] = self.counts.get(words, 0) + 1
        wrong = judge(entry.act, task, entry.asked, disk_was_full=self.disk_was_full)
        if wrong is not None:
            self.flaw(f"SubmittedIsEnded: {wrong}")
        return entry

    def not_found(self, task_id: str, unended: Mark, words: str) -> None:
        """The cluster says that there is no such task, which was acknowledged. unended: when it had not ended yet."""
        with self._lock:
            if self._open.pop(task_id, None) is None:
                return
            self._forgotten_unseen.add(task_id)
        if not self.may_be_forgotten(unended):
            since_s = time.monotonic() - unended.at
            self.flaw(
                f"NothingLost: task {task_id} was acknowledged, had not ended {since_s:.0f} s ago, and is not found: "
                f"{words}"
            )

    def may_be_forgotten(self, unended: Mark) -> bool:
        """Whether the nodes' retention may have forgotten a task that had not ended at this mark."""
        with self._lock:
            return may_be_forgotten(unended, now=time.monotonic(), tried=self._tried)

    def mark(self) -> Mark:
        """Now."""
        with self._lock:
            return self._mark()

    def _mark(self) -> Mark:
        return Mark(time.monotonic(), len(self._ended))

    def flaw(self, words: str) -> None:
        with self._lock:
            self.flaws_in_all += 1
            if len(self.flaws) < FLAWS_TOLD:
                self.flaws.append(words)

    # What is known

    def open(self) -> dict[str, Entry]:
        """Acknowledged, not seen to have ended."""
        with self._lock:
            return dict(self._open)

    def doubtful(self) -> dict[str, Entry]:
        with self._lock:
            return dict(self._doubtful)

    def all_acknowledged(self) -> set[str]:
        with self._lock:
            return set(self._acknowledged)

    def lost(self) -> set[str]:
        """Acknowledged, and neither open nor ended, nor forgotten before that was seen: there must be none."""
        with self._lock:
            return self._acknowledged - self._open.keys() - self._ended.keys() - self._forgotten_unseen

    def all_tried(self) -> set[str]:
        with self._lock:
            return self._acknowledged | self._doubtful.keys()

    def has_ended(self, task_id: str) -> bool:
        with self._lock:
            return task_id in self._ended

    def ended_since(self, moment: float) -> list[str]:
        """Of the newest thousand, those whose end was seen after this moment."""
        with self._lock:
            return [task_id for task_id in self._newest_ended if self._ended[task_id].seen_at >= moment]

    @property
    def acknowledged_count(self) -> int:
        return len(self._acknowledged)

    @property
    def forgotten_unseen_count(self) -> int:
        return len(self._forgotten_unseen)

    @property
    def ended_count(self) -> int:
        return len(self._ended)
