"""What options of several verbs have in common: how their values are written."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click

from node.units import parse_duration, parse_size
from pilfer.types import Mount

P = ParamSpec("P")
R = TypeVar("R")


class _Parsed(click.ParamType[Any]):
    """A value that a function parses, which raises ValueError in words."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_rate(text: str) -> int:
    """Bytes per second of `10M` or `10M/s`."""
    return parse_size(text.removesuffix("/s"))


def parse_pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_mount(text: str) -> Mount:
    """SRC:DST[:ro|rw]; read-only by default."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) == 3 else "ro"
    if len(parts) != 2 or not all(parts) or mode not in ("ro", "rw"):
        raise ValueError(f"{text!r} is not SRC:DST, SRC:DST:ro or SRC:DST:rw")
    return Mount(parts[0], parts[1], read_only=mode == "ro")


def parse_task_id(text: str) -> str:
    try:
        parsed = str(uuid.UUID(text))
    except ValueError:
        parsed = ""
    if parsed != text.lower():
        raise ValueError(f"{text!r} is not a UUID such as {uuid.UUID(int=0)}")
    return parsed


SIZE = _Parsed("size", parse_size)
RATE = _Parsed("rate", parse_rate)
DURATION = _Parsed("duration", parse_duration)
PAIR = _Parsed("key=value", parse_pair)
MOUNT = _Parsed("src:dst[:ro|rw]", parse_mount)
TASK_ID = _Parsed("uuid", parse_task_id)

#: Words of TaskStatus, for --status.
STATUS = click.Choice(["queued", "running", "complete", "canceled", "failed"])


def json_option(function: Callable[P, R]) -> Callable[P, R]:
    return click.option("--json", "as_json", is_flag=True, help="JSON lines, for programs.")(function)


def raw_option(function: Callable[P, R]) -> Callable[P, R]:
    return click.option("--raw", "is_raw", is_flag=True, help="Byte for byte on a terminal too; a task can act on it.")(
        function
    )


def label_option(text: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option("--label", "labels", type=PAIR, metavar="K=V", multiple=True, help=text)
