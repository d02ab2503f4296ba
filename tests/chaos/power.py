"""Which machines shall be on, and what a service manager does for them: a node that ended is started again.

A node that a fault switched off stays off until each fault that wants that is undone. One that ended by itself is
started again as well, as the unit in docs/operations.md says (Restart=always), and is told of: ending is right for a
node whose disk is full, and for few other reasons.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable

from tests.support.lab import Lab, LabNode

#: Between two starts of one node at least.
AGAIN_S = 2.0
#: Ends that faults bring about.
_EXPECTED = (0, -signal.SIGKILL, -signal.SIGTERM)


class Power:
    """The switches of all machines of a lab."""

    def __init__(self, lab: Lab, tell: Callable[[str], None]) -> None:
        self._lab = lab
        self._tell = tell
        self._off: Counter[str] = Counter()
        self._began: dict[str, float] = {}
        #: In words, each time that a node ended by itself.
        self.ended: list[str] = []

    def keep_off(self, nodes: Iterable[LabNode]) -> Callable[[], None]:
        """These are not started again until what is returned is called."""
        names = [node.name for node in nodes]
        self._off.update(names)

        def undo() -> None:
            self._off.subtract(names)

        return undo

    def tick(self) -> None:
        """Starts what shall be on and is not. To be called often, by the thread that made the lab."""
        for node in list(self._lab.nodes.values()):
            if not node.is_up and self._off[node.name] <= 0:
                self._start(node)

    def _start(self, node: LabNode) -> None:
        now = time.monotonic()
        if now - self._began.get(node.name, -AGAIN_S) < AGAIN_S:
            return
        code = node.process.returncode if node.process is not None else 0
        # With an empty directory it is another host that begins now.
        if code not in _EXPECTED and node.has_joined:
            self.ended.append(f"{node.name} ended by itself with {code}: {node.tail(1).strip()}")
            self._tell(self.ended[-1])
        self._began[node.name] = now
        try:
            self._lab.begin(node)
        except AssertionError as error:
            # No token is to be had: tried again with the next turn.
            self._tell(f"{node.name} cannot be started now: {error}")
