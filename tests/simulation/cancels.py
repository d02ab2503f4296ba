"""Every cancel that is in a record is carried out, whoever asked for it and whether he was answered or not.

* CancelIsObeyed: a canceled task's processes are gone within its grace and 2 s, or its node is fenced (design, section
  8, 5). Where nothing befalls the host, the touch of the running key tells its node. Whatever befell it, the comparison
  of its own keys does: then it has its grace and 2 s from the first comparison of a calm host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.core.model import Task
from node.running.own_keys import TICK_S
from tests.simulation.loop import of_nobody, true_time
from tests.support.fake_store import Change

if TYPE_CHECKING:
    from tests.simulation.checks import Checks
    from tests.simulation.host import Host
    from tests.simulation.sandboxes import Command

SLACK_S = 2.0
#: How often one is asked for whose host is not calm yet.
ASK_S = 1.0


class Cancels:
    """Watches etcd beside the checks, and asks again until nothing is left of each."""

    def __init__(self, checks: Checks, hosts: Sequence[Host]) -> None:
        """hosts: may grow."""
        self._checks = checks
        self._hosts = hosts

    # As etcd's listener, after the checks

    def changed(self, _change: Change) -> None:
        for task_id, before in self._checks.written():
            after = self._checks.history.find(task_id)
            if after is not None and after.cancel_requested and before is not None and not before.cancel_requested:
                limit_s = after.spec.grace_s + SLACK_S
                of_nobody(self._ask_soon, after, true_time(), limit_s, delay_s=limit_s)
                of_nobody(self._ask_late, after, true_time() + TICK_S, limit_s, delay_s=TICK_S + limit_s)

    def _ask_soon(self, task: Task, asked_at: float, limit_s: float) -> None:
        """Of a host that nothing has befallen since."""
        for command in self._left(task):
            if all(host.calm_since <= asked_at for host in self._hosts_of(command)):
                self._tell(task, command, f"{limit_s:g} s after it was canceled")

    def _ask_late(self, task: Task, compared_at: float, limit_s: float) -> None:
        """Until nothing is left of it. compared_at: when a host has compared its keys that was calm all the while; on
        others it is done by the time that they are calm again (`host.AFTERMATH_S`)."""
        left = self._left(task)
        for command in left:
            calm_since = max((host.calm_since for host in self._hosts_of(command)), default=compared_at)
            if true_time() >= max(calm_since, compared_at) + limit_s:
                self._tell(task, command, f"{limit_s:g} s after nothing keeps its node from ending it")
                return
        found = self._checks.history.find(task.id)
        is_over = found is None or found.status is not task.status or found.attempt != task.attempt
        if not is_over or left or self._frozen(task):
            of_nobody(self._ask_late, task, compared_at, limit_s, delay_s=ASK_S)

    def _left(self, task: Task) -> list[Command]:
        """What moves of this attempt: what is frozen is fenced."""
        return [command for command in self._checks.is_moving(task.id) if command.attempt == task.attempt]

    def _frozen(self, task: Task) -> bool:
        """It may be thawed again."""
        command = self._checks.command(task.id, task.attempt)
        return command is not None and not command.is_over

    def _hosts_of(self, command: Command) -> list[Host]:
        """A copy of its directory has the same id, and is not among them."""
        return [host for host in self._hosts if command.host_id in host.ids]

    def _tell(self, task: Task, command: Command, when: str) -> None:
        where = ", ".join(host.name for host in self._hosts_of(command))
        self._checks.add("CancelIsObeyed", task.id, f"attempt {command.attempt} runs on {where} {when}")
