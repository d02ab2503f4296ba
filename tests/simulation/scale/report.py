"""The table of docs/benchmarks.md: one line for each run, kept from one call to the next."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from tests.simulation.scale.load import Plan
from tests.simulation.scale.run import Result

REPORT = Path(__file__).parents[3] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"
HEAD = (
    "| nodes | tasks | load | kinds | tried per won (raced, late) | Jain | drain s (at best) | start p50, p99, worst s"
    " | big ones p99 s | of watches, per node: messages / events / MB | etcd per task: write RPCs / items / read RPCs"
    " / records | keys listed / counted per task | leader busy (longest queue s) | voter busy | RPCs/s at the leader "
    "| not answered | given back | CPU s of the run |"
)


def row(result: Result) -> str:
    """A line of the table; its first four columns tell it from others."""
    claims, plan = result.claims, result.plan
    rpcs_per_s = (result.writes + result.reads) * plan.tasks / result.drain_s
    cells = [
        *_which(plan),
        f"{claims.tried / max(1, claims.won):.3f} ({claims.raced}, {claims.late})",
        f"{result.jain:.3f}",
        f"{result.drain_s:.1f} ({result.ideal_s:.1f})",
        f"{result.start.p50:.2f} / {result.start.p99:.2f} / {result.start.worst:.2f}",
        f"{result.big_start.p99:.2f}" if plan.tasks_kind == "big" else "-",
        f"{result.messages:.0f} / {result.events:.0f} / {result.megabytes:.1f}",
        f"{result.writes:.2f} / {result.items:.2f} / {result.reads:.2f} / {result.records:.2f}",
        f"{result.listed:.1f} / {result.counted:.1f}",
        f"{result.leader_busy:.0%} ({result.leader_wait_s:.2f})",
        f"{result.voter_busy:.0%}",
        f"{rpcs_per_s:.0f}",
        f"{result.unanswered}",
        f"{result.given_back}",
        f"{result.cpu_s:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _which(plan: Plan) -> list[str]:
    kinds = f"{plan.nodes_kind} nodes, {plan.tasks_kind} tasks of {plan.task_s:g} s"
    return [f"{plan.nodes:,}", f"{plan.tasks:,}", plan.load, kinds]


def write(result: Result, report: Path = REPORT) -> None:
    """Puts the line into the table, in place of an older one of the same run."""
    before, rest = report.read_text().split(BEGIN)
    table, after = rest.split(END)
    rows = {_key(line): line for line in table.splitlines() if re.match(r"\| [0-9]", line)}
    new = row(result)
    rows[_key(new)] = new
    lines = [
        f"Newest line of {datetime.datetime.now(datetime.UTC).date().isoformat()}; in no line did a task not end.",
        "",
        HEAD,
        "|" + "---|" * HEAD.count(" |"),
        *[rows[key] for key in sorted(rows)],
    ]
    report.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


def _key(line: str) -> tuple[str, str, int, int]:
    nodes, tasks, load, kinds = (cell.strip() for cell in line.split("|")[1:5])
    return load, kinds, int(nodes.replace(",", "")), int(tasks.replace(",", ""))
