"""Clients that are killed with SIGKILL in the middle of what they do, as if their machine had died.

What was acknowledged to one of them, by what it wrote down, counts like everything that was acknowledged. What it may
have sent besides stays in doubt, and is submitted again with the same ids: stored or not, it is one task.
"""

from __future__ import annotations

import base64
import contextlib
import random
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from pilfer import new_task_id
from tests.chaos.acts import Acts, message_of
from tests.chaos.followers import AGAIN_S

if TYPE_CHECKING:
    from tests.chaos.load import Load

EVERY_S = 12.0
TASKS = 12
#: A process of Python with grpc begins to speak after half a second on an idle machine.
LIVES_S = (0.3, 0.6, 1.0, 2.0, 5.0)


class DyingClients:
    """One at a time, in a thread."""

    def __init__(self, load: Load, acts: Acts, rng: random.Random) -> None:
        self._load = load
        self._acts = acts
        self._rng = rng
        self.killed = 0

    def run(self) -> None:
        while not self._load.is_stopped:
            self._load.pause_s(self._rng.uniform(0.5, 1.5) * EVERY_S)
            addresses = self._load.addresses(self._rng)
            if not addresses:
                continue
            if self._rng.random() < 0.6:
                with self._load.gate.turn() as is_open:
                    if is_open:
                        self._submit(addresses)
            else:
                self._follow(addresses)

    def _submit(self, addresses: str) -> None:
        acts = [(new_task_id(), self._acts.draw(self._rng)) for _ in range(TASKS)]
        self._load.ledger.tried(acts)
        lines = "\n".join(base64.b64encode(message_of(*act).SerializeToString()).decode() for act in acts)
        written = self._live(addresses, "submit", stdin=lines)
        stored = int(written[-1]) if written else 0
        self._load.ledger.acknowledged([task_id for task_id, _ in acts[:stored]])

    def _follow(self, addresses: str) -> None:
        ids = list(self._load.ledger.open())
        if ids:
            self._live(addresses, "follow", self._rng.choice(ids))

    def _live(self, *args: str, stdin: str = "") -> list[str]:
        """Lives so long as is drawn; gives the whole lines that it wrote down."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as given:
            given.write(stdin)
            given.seek(0)
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.chaos.clients", *args],
                stdin=given, stdout=out, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(AGAIN_S + self._rng.choice(LIVES_S))
            self.killed += process.poll() is None
            process.kill()
            process.wait()
            out.seek(0)
            text = out.read()
            return text[: text.rfind("\n") + 1].split()
