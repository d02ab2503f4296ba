"""The sandboxes that live, and the ways to end one.

A sandbox is here from its clone until the report of its end. When its PID 1 was reaped, which is shortly before, its
pid may be another process's: from then on no signal goes there.

Ends are told apart by who asked for them first (`Sandbox.asked_by`); the fence, and the spawner's own end, come before
all others. Nothing here reports, or waits for anything; a kill never fails.
"""

from __future__ import annotations

import errno
import os
import signal

from isolation.cgroup import Parent
from isolation.sandbox import FENCE, SCRATCH, Sandbox
from isolation.timers import Timers


class Living:
    """Invariant: no two that are here share a note, an id or, until it is reaped, a pid."""

    def __init__(self, parent: Parent, timers: Timers) -> None:
        self._parent = parent
        self._timers = timers
        self._by_note: dict[int, Sandbox] = {}
        self._by_id: dict[str, Sandbox] = {}
        #: All and only those whose PID 1 was not reaped.
        self._by_pid: dict[int, Sandbox] = {}

    # ---- who is here ---------------------------------------------------------------------------------------------

    def add(self, sandbox: Sandbox) -> None:
        self._by_note[sandbox.note] = self._by_id[sandbox.spec.id] = self._by_pid[sandbox.pid] = sandbox

    def find(self, sandbox_id: str) -> Sandbox | None:
        return self._by_id.get(sandbox_id)

    def find_by_note(self, number: int) -> Sandbox | None:
        return self._by_note.get(number)

    def take_reaped(self, pid: int) -> Sandbox | None:
        """Whose PID 1 this was. None: nobody's."""
        return self._by_pid.pop(pid, None)

    def remove(self, sandbox: Sandbox) -> None:
        """One that was reaped."""
        self.cancel_timers(sandbox)
        del self._by_note[sandbox.note], self._by_id[sandbox.spec.id]

    @property
    def pids(self) -> list[int]:
        """Of every PID 1 that was not reaped."""
        return sorted(self._by_pid)

    @property
    def is_empty(self) -> bool:
        """Every PID 1 was reaped."""
        return not self._by_pid

    # ---- ending one ----------------------------------------------------------------------------------------------

    def terminate(self, sandbox: Sandbox, reason: str, grace_s: float) -> None:
        """SIGTERM now and SIGKILL after the grace period; a second call can only shorten it."""
        if not sandbox.asked_by:
            sandbox.asked_by = reason
        if grace_s <= 0:
            self.kill(sandbox)
            return
        # To PID 1, which passes it on to the command's process group and knows whether that had ended before.
        os.kill(sandbox.pid, signal.SIGTERM)
        sandbox.timers.append(self._timers.after(grace_s, lambda: self.kill(sandbox)))

    def kill(self, sandbox: Sandbox) -> None:
        """Ends it. PID 1 first, which would say otherwise that the command had ended by itself."""
        if sandbox.pid not in self._by_pid:
            return
        os.kill(sandbox.pid, signal.SIGKILL)
        # With PID 1 the kernel kills everything in the namespace; but PID 1 has to get its turn for that, among all
        # of them. And a frozen one on version 1 dies when it is thawed: every process needs its own signal before.
        sandbox.group.kill()

    def kill_for_scratch(self, sandbox_id: str, words: str) -> None:
        sandbox = self._by_id[sandbox_id]
        sandbox.asked_why = words
        self.terminate(sandbox, SCRATCH, 0)

    def kill_all(self, reason: str) -> None:
        for sandbox in self._by_pid.values():
            self._kill_before_all_else(sandbox, reason)
        self._parent.kill()

    def kill_unfrozen(self) -> None:
        """At the fence deadline: what is not known to stand still."""
        for sandbox in self._by_pid.values():
            if not sandbox.group.is_frozen():
                self._kill_before_all_else(sandbox, FENCE)

    def _kill_before_all_else(self, sandbox: Sandbox, reason: str) -> None:
        """Whatever else was asked for this sandbox."""
        sandbox.asked_by = reason
        step, words = ("fence", "the node's deadline") if reason == FENCE else ("closing", "the spawner's end")
        sandbox.given_up = (step, errno.ECANCELED, f"killed at {words} while it was set up")
        self.kill(sandbox)

    def cancel_timers(self, sandbox: Sandbox) -> None:
        for timer in sandbox.timers:
            self._timers.cancel(timer)
        sandbox.timers.clear()
