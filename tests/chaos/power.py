"""Which machines shall be on, and what a service manager does for them: a node that ended is started again.

A node that a fault switched off stays off until each fault that wants that is undone. One that ended by itself is
started again as well, as the unit in docs/operations.md says (Restart=always). But no node may end by itself, whatever
happens around it, for other reasons than those of that page (`why_it_may`): a disk that is full, a removal, or its
spawner's death before it has begun. Everything else is a flaw: NothingBreaks.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.support.lab import Lab, LabNode

#: Between two starts of one node at least.
AGAIN_S = 2.0
#: A start takes as long at most, on a crowded machine and with its etcd's first steps; then a spawner that dies is
#: replaced.
START_S = 90.0
#: What a full disk has broken may take so long to come to its end: tasks are waited for (`stop_wait`: 10 s).
FULL_S = 20.0
#: Of its output, told of a node that broke.
TOLD_LINES = 12
#: Among so many last lines is a node's own word, which begins like this.
WORD_LINES, WORD = 5, "node: "


@dataclass(frozen=True, slots=True)
class End:
    """How a node's process ended."""

    #: Of `Popen.returncode`.
    code: int
    #: Its last line of those that begin with `WORD`; empty: it left none.
    word: str
    #: It had been told to stop.
    was_told: bool = False
    #: Its disk was full then, or shortly before.
    disk_was_full: bool = False
    #: Its host was removed from the cluster.
    is_removed: bool = False
    #: Its data directory belongs to a cluster: it is not joining yet.
    has_joined: bool = True
    lived_s: float = 0.0


def why_it_may(end: End) -> str | None:
    """Why that is as it should be, in a word; None: it is not. (docs/operations.md: start and stop, disk full.)"""
    if end.code == -signal.SIGKILL:
        return "killed"
    if end.code in (0, -signal.SIGTERM):
        return "told to stop" if end.was_told else None
    has_no_spawner = "spawner" in end.word and "is gone" in end.word
    refusals = {
        "disk full": end.disk_was_full,
        "removed": end.is_removed and "was removed from" in end.word,
        "no spawner at its start": has_no_spawner and end.lived_s < START_S,
        "not let in yet": not end.has_joined and bool(end.word),
    }
    # Whatever else it says: who is refused ends with 1. A full disk may break it in the middle of anything.
    return next((why for why, is_so in refusals.items() if is_so and (end.code == 1 or end.disk_was_full)), None)


class Power:
    """The switches of all machines of a lab."""

    def __init__(self, lab: Lab, tell: Callable[[str], None]) -> None:
        self._lab = lab
        self._tell = tell
        self._off: Counter[str] = Counter()
        self._began: dict[str, float] = {}
        #: By name: the pid that was seen up last, since when, and when last.
        self._seen: dict[str, tuple[int, float, float]] = {}
        #: When a disk was known to be full last, by the name of the node.
        self._full_at: dict[str, float] = {}
        #: Pids whose end was judged.
        self._judged: set[int] = set()
        #: The name of a machine whose processes are let live for the time being; empty: none.
        self.spared = ""
        #: Ids of hosts that were removed from the cluster.
        self.removed: set[str] = set()
        #: How often a node ended by itself as it may, by the reason.
        self.ended: Counter[str] = Counter()
        #: NothingBreaks, in words.
        self.flaws: list[str] = []

    def keep_off(self, nodes: Iterable[LabNode]) -> Callable[[], None]:
        """These are not started again until what is returned is called."""
        names = [node.name for node in nodes]
        self._off.update(names)

        def undo() -> None:
            self._off.subtract(names)

        return undo

    def note_full(self, nodes: Iterable[LabNode]) -> None:
        """The disks of these are full at this moment."""
        self._full_at.update(dict.fromkeys((node.name for node in nodes), time.monotonic()))

    def tick(self) -> None:
        """Starts what shall be on and is not. To be called often, by the thread that made the lab."""
        nodes = list(self._lab.nodes.values())
        self.note_full(node for node in nodes if node.disk is not None and node.disk.is_filled)
        for node in nodes:
            if node.is_up:
                self._see(node)
            elif self._off[node.name] <= 0:
                self._start(node)

    def _see(self, node: LabNode) -> None:
        now, (pid, since, _) = time.monotonic(), self._seen.get(node.name, (0, 0.0, 0.0))
        self._seen[node.name] = (node.pid, since if pid == node.pid else now, now)

    def _start(self, node: LabNode) -> None:
        now = time.monotonic()
        if now - self._began.get(node.name, -AGAIN_S) < AGAIN_S:
            return
        self.judge_end(node)
        self._began[node.name] = now
        try:
            self._lab.begin(node)
        except AssertionError as error:
            # No token is to be had: tried again with the next turn.
            self._tell(f"{node.name} cannot be started now: {error}")

    def judge_end(self, node: LabNode) -> None:
        """Of a node whose process is over: whether it might end as it did. Each end is judged once."""
        if node.process is None or node.process.returncode is None or node.pid in self._judged:
            return
        self._judged.add(node.pid)
        end = self._end_of(node, node.process.returncode)
        why = why_it_may(end)
        if why is None:
            words = "\n".join([f"NothingBreaks: {node.name} ended by itself with {end.code}", node.tail(TOLD_LINES)])
            self.flaws.append(words)
            self._tell(words)
        elif end.code > 0 and end.has_joined:
            self.ended[why] += 1
            self._tell(f"{node.name} ended by itself with {end.code} ({why}): {end.word or node.tail(1)}")

    def _end_of(self, node: LabNode, code: int) -> End:
        now = time.monotonic()
        pid, since, last = self._seen.get(node.name, (0, 0.0, 0.0))
        if pid != node.pid:
            # It came and went between two looks.
            since = last = self._began.get(node.name, now)
        words = [line for line in node.tail(WORD_LINES).splitlines() if line.startswith(WORD)]
        return End(
            code,
            word=words[-1] if words else "",
            was_told=node.is_stopping,
            disk_was_full=self._full_at.get(node.name, last - 2 * FULL_S) > last - FULL_S,
            is_removed=self._find_host_id(node) in self.removed,
            has_joined=node.has_joined,
            lived_s=last - since,
        )

    @staticmethod
    def _find_host_id(node: LabNode) -> str:
        return node.host_id if (node.data_dir / "host_id").exists() else ""
