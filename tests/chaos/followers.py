"""Who reads output: followers from the first byte through the deaths of nodes, and readers of logs that are complete.

What was heard is compared with what the attempt must have written (`pattern.py`), as it comes. An attempt that ended by
itself has all of it; one that was ended from outside any beginning. That the stream of a follower ends means that the
task has ended: it is asked, and must say so. What could not be read is counted by its reason (`Unread`); that a task is
not found whose record retention cannot have forgotten yet is no reason, but a flaw.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from pilfer import Attempt, Client, NotFound, PilferError, PreconditionFailed, Reason, Task, new_task_id
from tests.chaos.acts import LOG_LIMIT_BYTES, NO_ROOM, Act, Acts
from tests.chaos.forgetting import Mark
from tests.chaos.pattern import Reading, flaws_of_part, flaws_of_whole

if TYPE_CHECKING:
    from tests.chaos.ledger import Entry
    from tests.chaos.load import Load

FOLLOWERS = 3
#: Between two tries of the same thing.
AGAIN_S = 0.5
PATIENCE_S = 30.0
#: A follower waits so long for a host that is away.
AWAY_S = 60.0
#: Logs that wait to be read; the oldest go unread where there are more.
WAITING_MAX = 200
TRIES = 20
CALL_S = 10.0


class Followers:
    """Some threads, each with one task at a time."""

    def __init__(self, load: Load, acts: Acts, rng: random.Random) -> None:
        self._load = load
        self._acts = acts
        self._rngs = [random.Random(rng.random()) for _ in range(FOLLOWERS)]
        self.followed = 0
        self.given_up = 0

    def loops(self) -> Sequence[Callable[[], None]]:
        return [self._loop(number) for number in range(FOLLOWERS)]

    def _loop(self, number: int) -> Callable[[], None]:
        def follow() -> None:
            rng = self._rngs[number]
            while not self._load.is_stopped:
                task_id, act = new_task_id(), self._acts.chatty(rng)
                with self._load.gate.turn() as is_open:
                    is_there = is_open and self._load.submit([(task_id, act)], rng)
                if is_there:
                    self._follow(task_id, act, rng)
                else:
                    self._load.pause_s(AGAIN_S)

        follow.__qualname__ = f"follower {number}"
        return follow

    def _follow(self, task_id: str, act: Act, rng: random.Random) -> None:
        """To the end of the stream; begun anew where the client gives up."""
        missing_since: float | None = None
        while not self._load.is_finished:
            reading, epoch = Reading(task_id), self._load.epoch
            addresses = self._load.addresses(rng)
            if not addresses:
                self._load.pause_until_finished_s(AGAIN_S)
                continue
            try:
                with Client(addresses, patience_s=PATIENCE_S) as client:
                    for chunk in client.log(task_id, follow=True):
                        reading.take(chunk)
                    task = client.status(task_id)
            except NotFound:
                # Forgotten, or lost; which of the two, the looker knows.
                return
            except PreconditionFailed:
                # The host that has the log is away; it may be for good, with its disk.
                missing_since = missing_since or time.monotonic()
                if time.monotonic() - missing_since > AWAY_S:
                    self.given_up += 1
                    return
                self._load.pause_until_finished_s(AGAIN_S)
                continue
            except (PilferError, OSError):
                self._load.pause_until_finished_s(AGAIN_S)
                continue
            if epoch != self._load.epoch:
                continue
            self.followed += 1
            for words in flaws_of_following(act, task, reading):
                self._load.ledger.flaw(f"LogIsWhatWasWritten: follower of task {task_id}: {words}")
            return


def flaws_of_following(act: Act, task: Task, reading: Reading) -> list[str]:
    """What a follower from the first byte should have heard by the end of its stream and did not. task: as it was found
    right after that."""
    if not task.status.is_terminal:
        return [f"the stream ended, and the task is {task.status}"]
    newest = task.newest_attempt
    if newest is None:
        return []
    return flaws_of_attempt(act, newest, reading, limit_bytes=1 << 40)


def flaws_of_attempt(act: Act, attempt: Attempt, reading: Reading, *, limit_bytes: int) -> list[str]:
    """What is wrong with all that can be read of an attempt that is over."""
    outcome = attempt.outcome
    ended_itself = outcome is not None and outcome.reason is Reason.EXITED and outcome.exit_code != NO_ROOM
    if ended_itself and outcome is not None and outcome.exit_code == act.exit_code:
        notices = reading.notices.get(attempt.number, [])
        found = flaws_of_whole(reading, attempt.number, act.sizes, limit_bytes)
        return [f"{words}; told: {notices}" if notices else words for words in found]
    return flaws_of_part(reading, attempt.number, act.sizes)


class Unread(StrEnum):
    """Why the log of an attempt that is over was not read and judged."""

    FORGOTTEN = "forgotten with its task"
    OVERFLOWED = "too many waited"
    NOTICED = "not all is there, as is told"
    OTHER_EPOCH = "across a recovery"
    TRIES_USED_UP = "no answer"
    HOST_AWAY = "its host is away"


@dataclass(slots=True)
class _Wanted:
    task: Task
    act: Act
    #: When it had not ended yet.
    unended: Mark
    epoch: int
    tries: int = 0
    #: Attempts that were read or given up.
    done: set[int] = field(default_factory=set)


class LogReaders:
    """Reads the logs of tasks that ended, each attempt's, from wherever it lies."""

    def __init__(self, load: Load, rng: random.Random) -> None:
        self._load = load
        self._rng = rng
        self._lock = threading.Lock()
        self._wanted: deque[_Wanted] = deque()
        self.read = 0
        #: Attempts.
        self._unread: Counter[Unread] = Counter()

    def ask(self, task: Task, entry: Entry) -> None:
        """The task has ended: its attempts' logs are to be read. entry: what was known of it before."""
        with self._lock:
            if len(self._wanted) >= WAITING_MAX:
                self._give_up(self._wanted.popleft(), Unread.OVERFLOWED)
            self._wanted.append(_Wanted(task, entry.act, entry.tried, self._load.epoch))

    def unread(self) -> str:
        """How many attempts' logs could not be read, by reason."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self._unread.items())) or "none"

    def _give_up(self, wanted: _Wanted, why: Unread) -> None:
        self._unread[why] += len(wanted.task.attempts) - len(wanted.done)

    @property
    def waiting(self) -> int:
        return len(self._wanted)

    def run(self) -> None:
        while not self._load.is_finished:
            with self._lock:
                wanted = self._wanted.popleft() if self._wanted else None
            if wanted is None:
                self._load.pause_until_finished_s(AGAIN_S)
            elif not self._read(wanted):
                wanted.tries += 1
                with self._lock:
                    if wanted.tries < TRIES:
                        self._wanted.append(wanted)
                    else:
                        self._give_up(wanted, Unread.TRIES_USED_UP)
                self._load.pause_until_finished_s(AGAIN_S)

    def _read(self, wanted: _Wanted) -> bool:
        """Whether all of it was read, or cannot be."""
        for attempt in wanted.task.attempts:
            if attempt.number in wanted.done:
                continue
            reading, epoch = Reading(wanted.task.id), self._load.epoch
            try:
                with self._load.client(self._rng, timeout_s=CALL_S) as client:
                    for chunk in client.log(wanted.task.id, attempt=attempt.number):
                        reading.take(chunk)
            except NotFound as error:
                why: Unread | None = Unread.FORGOTTEN
                if epoch == self._load.epoch == wanted.epoch:
                    self._judge_not_found(wanted, str(error))
            except PreconditionFailed:
                # Of a host that is gone nothing can be had.
                why = Unread.HOST_AWAY
            except (PilferError, OSError):
                return False
            else:
                why = Unread.NOTICED if reading.notices.get(attempt.number) else None
            if epoch != self._load.epoch or wanted.epoch != epoch:
                why = Unread.OTHER_EPOCH
            wanted.done.add(attempt.number)
            if why is not None:
                self._unread[why] += 1
                continue
            self.read += 1
            for words in flaws_of_attempt(wanted.act, attempt, reading, limit_bytes=LOG_LIMIT_BYTES):
                self._load.ledger.flaw(f"LogIsWhatWasWritten: task {wanted.task.id}: {words}")
        return True

    def _judge_not_found(self, wanted: _Wanted, words: str) -> None:
        """Wherever its log lies, the task is known to all. (After a recovery it may have ended in another attempt.)"""
        if not self._load.ledger.may_be_forgotten(wanted.unended):
            self._load.ledger.flaw(f"NothingLost: the log of task {wanted.task.id}, which ended, is not found: {words}")
