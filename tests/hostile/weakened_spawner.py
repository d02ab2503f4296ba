"""A spawner with one protection left out, run in place of the real one by `weaken.py`.

It changes the plan and nothing else: the steps of the given names are not taken. What is left (an unprivileged user
without capabilities, namespaces, limits) still protects the machine, and the guard of the attacks looks at that.
"""

from __future__ import annotations

from isolation import plan, spawner
from isolation.spec import SandboxSpec
from isolation.step import Step

_whole_plan = plan.steps


def main(requests_fd: int, control_fd: int, without: frozenset[str]) -> None:
    """As `isolation.spawner.main`."""
    if not without or "user" in without:
        raise ValueError("nothing is left out, or what keeps the machine safe")

    def steps(spec: SandboxSpec, r: plan.Resources) -> list[Step]:
        whole = _whole_plan(spec, r)
        kept = [step for step in whole if step.name not in without]
        if without - {step.name for step in whole}:
            raise ValueError("the plan has no such step")
        return kept

    plan.steps = steps
    spawner.main(requests_fd, control_fd)
