"""One claim and what became of it: the state that the runner, the claimer and the reconciling share.

held      the claim is won, the sandbox is not started: it waits for room, or is being launched
running   the command runs
ending    every process is gone; the end is being written
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from etcd.store import Claim
from isolation.client import Sandbox
from node.core.model import Task
from node.core.reconcile import Phase
from node.running.outcomes import StopWhy


class Run:
    """One claim and what became of it."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        #: On the loop's clock.
        self.since_s = asyncio.get_running_loop().time()
        #: Called when its end is asked for while it waits for room; None when it does not.
        self.on_stop: Callable[[Run], None] | None = None
        self.phase = Phase.HELD
        self._stop_why: StopWhy | None = None
        self.sandbox: Sandbox | None = None
        self.started_at: float | None = None
        #: Version of the running key at which the record was last looked at for a cancel request.
        self.version_checked = 1
        #: From before the sandbox is made until every process of it is gone.
        self.holds_reservation = False
        #: Its end is written, or refused.
        self.over = asyncio.Event()

    @property
    def task(self) -> Task:
        return self.claim.task

    @property
    def stop_why(self) -> StopWhy | None:
        """Why its end was asked for; changes between awaits."""
        return self._stop_why

    @property
    def grace_s(self) -> float:
        return self.task.spec.grace_s

    def begin(self, sandbox: Sandbox) -> None:
        """The command runs; its end may have been asked for while the sandbox was being made."""
        self.sandbox = sandbox
        self.started_at = sandbox.started.started_at
        if self._stop_why is not None:
            sandbox.stop(self.grace_s)

    def ask_stop(self, why: StopWhy) -> None:
        """Ends the command now or, where it has not started, instead of starting it. A cancel outranks a give back."""
        if self._stop_why is StopWhy.CANCEL or self.phase is Phase.ENDING:
            return
        first = self._stop_why is None
        self._stop_why = why
        if self.sandbox is not None and first:
            self.sandbox.stop(self.grace_s)
        if self.on_stop is not None:
            self.on_stop(self)
