"""Tasks from JSON lines: one task a line, its fields those of TaskSpec in the proto, and an optional `id`.

All lines are read and checked before anything is sent. An unknown field, a doubled one, a value of the wrong type:
each is an error with its line number. Words are taken as the command line has them (`"network": "host"`); `stdin` is
base64, as in protobuf's JSON (bytes have no other form there).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from node.cli.parameters import parse_task_id
from pilfer.v1 import records_pb2, tasks_pb2


@dataclass(frozen=True, slots=True)
class LineError:
    #: Counted from 1.
    number: int
    message: str


@dataclass(frozen=True, slots=True)
class NumberedTask:
    """A task and the line that it stands on."""

    number: int
    task: tasks_pb2.NewTask


def read_tasks(lines: Iterable[bytes], *, errors_max: int = 100) -> tuple[list[NumberedTask], list[LineError]]:
    """The tasks of all lines and what is wrong with the others; empty lines are left out. Stops after errors_max."""
    tasks: list[NumberedTask] = []
    errors: list[LineError] = []
    first_lines: dict[str, int] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            task = parse_task(text)
        except ValueError as error:
            errors.append(LineError(number, str(error)))
        else:
            first = first_lines.setdefault(task.id, number) if task.id else number
            if first != number:
                errors.append(LineError(number, f"id {task.id} stands on line {first} already"))
            tasks.append(NumberedTask(number, task))
        if len(errors) >= errors_max:
            break
    return tasks, errors


def parse_task(text: bytes) -> tasks_pb2.NewTask:
    """The task of one line. Raises ValueError in words."""
    try:
        fields = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError('is not a JSON object, such as {"command": "true"}')  # noqa: TRY004  (one kind of error)
    task_id = fields.pop("id", "")
    if not isinstance(task_id, str):
        raise ValueError("id: is not a text")  # noqa: TRY004  (as above)
    _check_names(fields, records_pb2.TaskSpec.DESCRIPTOR, "")
    if isinstance(network := fields.get("network"), str) and network in ("none", "host"):
        fields["network"] = f"NETWORK_{network.upper()}"
    _check_base64(fields.get("stdin", ""))
    spec = records_pb2.TaskSpec()
    try:
        json_format.ParseDict(fields, spec)
    except json_format.ParseError as error:
        raise ValueError(_words(error)) from None
    return tasks_pb2.NewTask(id=parse_task_id(task_id) if task_id else "", spec=spec)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{double}: is there twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _check_names(fields: Mapping[str, object], message: Any, path: str) -> None:
    """Raises ValueError for the first field that the message does not have; json_format's own words are a page.

    message: a descriptor, of which the stubs know two unrelated classes.
    """
    known = message.fields_by_name
    for name, value in fields.items():
        field = known.get(name)
        if field is None:
            raise ValueError(f"{path}{name}: there is no such field; there are {', '.join(sorted(known))}")
        if value is None or field.type != FieldDescriptor.TYPE_MESSAGE or field.message_type.GetOptions().map_entry:
            continue
        items = value if field.is_repeated and isinstance(value, list) else [value]
        for index, item in enumerate(items):
            at = f"{path}{name}[{index}]" if field.is_repeated else f"{path}{name}"
            # json_format takes an empty list for an empty object.
            if not isinstance(item, dict):
                raise ValueError(f"{at}: is not a JSON object")  # noqa: TRY004  (one kind of error)
            _check_names(item, field.message_type, f"{at}.")


def _check_base64(text: object) -> None:
    """json_format leaves out what is not base64 and takes the rest."""
    try:
        base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except ValueError:
        raise ValueError("stdin: is not base64, the form of bytes in protobuf's JSON") from None


def _words(error: json_format.ParseError) -> str:
    """json_format's message without its own nesting: "Failed to parse FIELD field: WHY"."""
    text = str(error).rstrip(".")
    return text.removeprefix("Failed to parse ").replace(" field: ", ": ").replace("Failed to parse ", "")
