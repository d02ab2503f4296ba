"""Nodes, and what they say to a task, as JSON and as words. Pure, as `node/cli/render.py`."""

from __future__ import annotations

from datetime import datetime

from node.cli.render import Json, age, printable, rfc3339, task_json
from node.cli.tables import Column
from node.units import format_size
from pilfer.types import NodeView, Why, WhyNode


def node_json(node: NodeView) -> Json:
    """What only the node itself can tell is null where it did not answer."""
    answered = node.now is not None
    return {
        "id": node.id,
        "name": node.name,
        "host_id": node.host_id,
        "address": node.address or None,
        "state": node.state,
        "role": node.role or None,
        "load": node.load if answered else None,
        "capacity": {"cpu": node.cpu, "memory_bytes": node.memory_bytes},
        "reserved": {"cpu": node.reserved_cpu, "memory_bytes": node.reserved_memory_bytes} if answered else None,
        "running": node.running,
        "version": node.version,
        "etcd_version": node.etcd_version or None,
        "started_at": rfc3339(node.started_at),
        "age": (node.now - node.started_at).total_seconds() if node.now and node.started_at else None,
        "last_seen": rfc3339(node.last_seen),
        "not_enforced": list(node.not_enforced),
        "warnings": list(node.warnings),
    }


def node_row(node: NodeView, now: datetime) -> tuple[str, ...]:
    """For the table of `nodes`; see NODE_COLUMNS. now: for what its own clock does not tell."""
    return (
        node.id,
        printable(node.name),
        node.address or "unix socket",
        node.state,
        node.role,
        f"{node.load:.0%}" if node.now else "",
        f"{node.cpu:g} cpu, {format_size(node.memory_bytes)}",
        str(node.running),
        node.version,
        f"gone {age(node.last_seen, now)}" if node.last_seen else age(node.started_at, node.now or now),
    )


NODE_COLUMNS = (
    Column("id"),
    Column("name", is_flexible=True),
    Column("address", is_flexible=True),
    Column("state"),
    Column("role", dispensable=3),
    Column("load"),
    Column("capacity", is_flexible=True, dispensable=1),
    Column("running", dispensable=2),
    Column("version", dispensable=5),
    Column("age", dispensable=4),
)


def node_remarks(node: NodeView) -> list[str]:
    """What an operator should know, a sentence a line."""
    lacks = [f"does not enforce: {printable(lack)}" for lack in node.not_enforced]
    return [f"{printable(node.name)} {lack}" for lack in lacks] + [
        f"{printable(node.name)}: {printable(warning)}" for warning in node.warnings
    ]


def why_json(why: Why) -> Json:
    return {
        "task": task_json(why.task),
        "summary": why.summary,
        "nodes": [
            {"node_id": node.node_id, "name": node.name, "fits": node.fits, "reasons": list(node.reasons)}
            for node in why.nodes
        ],
    }


def why_row(node: WhyNode) -> tuple[str, ...]:
    """For the table of `why`; see WHY_COLUMNS."""
    return (
        printable(node.name),
        "yes" if node.fits else "no",
        printable("; ".join(node.reasons)) or "may claim it at any moment",
        node.node_id,
    )


WHY_COLUMNS = (
    Column("node", is_flexible=True),
    Column("fits"),
    Column("why not now", is_flexible=True),
    Column("id", dispensable=1),
)
