"""Runs large clusters and tells what they cost; `--write` puts each line into docs/benchmarks.md.

python -m tests.simulation.scale --nodes 10,100,1000 --tasks 100000 --load backlog [--nodes-kind mixed]
    [--tasks-kind big] [--task-s 1] [--window 10000] [--seed 1] [--write]
python -m tests.simulation.scale --decode
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
from collections.abc import Callable

from tests.simulation.scale import decode, report
from tests.simulation.scale.load import Plan
from tests.simulation.scale.run import simulate

#: Of millions of offers none is garbage in a cycle: looked for as often as usual, it would be a sixth of the time.
COLLECT = (50_000, 20, 100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="10", help="how many; several with commas")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--load", choices=["backlog", "trickle"], default="backlog")
    parser.add_argument("--nodes-kind", choices=["equal", "mixed"], default="equal")
    parser.add_argument("--tasks-kind", choices=["small", "big"], default="small")
    parser.add_argument("--task-s", type=float, default=1.0, help="how long a small task runs, on average")
    parser.add_argument("--window", type=int, default=10_000, help="of the queue, on each node")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--decode", action="store_true", help="measure what an event costs a node, and nothing else")
    options = parser.parse_args()
    if options.decode:
        print(decode.measure())
        return 0
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of strings must be that of the seed, too.
        arguments = [sys.executable, "-m", "tests.simulation.scale", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONHASHSEED": "0"})
    logging.disable()  # the nodes' own lines
    gc.freeze()
    gc.set_threshold(*COLLECT)
    print(report.HEAD, flush=True)
    for nodes in map(int, options.nodes.split(",")):
        plan = Plan(
            nodes,
            options.tasks,
            options.load,
            options.nodes_kind,
            options.tasks_kind,
            options.task_s,
            options.window,
            options.seed,
        )
        result = simulate(plan, tell=_progress(plan))
        print(report.row(result), f"{result.real_s:.0f} s", flush=True)
        if result.ended < plan.tasks:
            print(f"{plan.tasks - result.ended} tasks did not end")
            return 1
        if options.write:
            report.write(result)
    return 0


def _progress(plan: Plan) -> Callable[[int], None]:
    """Says how far it is, twenty times."""
    began, part = time.monotonic(), max(1, plan.tasks // 20)

    def tell(ended: int) -> None:
        if ended % part == 0:
            real_s = time.monotonic() - began
            print(f"{plan.nodes:,} nodes: {ended:,} of {plan.tasks:,} tasks ended in {real_s:.0f} s", file=sys.stderr)

    return tell


if __name__ == "__main__":
    sys.exit(main())
