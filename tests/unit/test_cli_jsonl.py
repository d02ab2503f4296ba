"""Tasks from JSON lines: every mistake is found, with its line and its field, before anything is sent."""

from __future__ import annotations

import base64
import json

import pytest

from node.cli.jsonl import parse_task, read_tasks
from pilfer.v1 import records_pb2

ID = "0190aaaa-0000-7000-8000-000000000001"


def test_a_whole_task() -> None:
    fields = {
        "id": ID.upper(),
        "command": "gzip",
        "args": ["-9", "ü"],
        "env": {"A": "1"},
        "cwd": "/tmp",
        "stdin": base64.b64encode(b"\0\xff").decode(),
        "name": "n",
        "labels": {"a": "b"},
        "requirements": {"cpu": 0.5, "memory_bytes": 1024, "pids": 3},
        "timeout_s": 1.5,
        "grace_s": 0,
        "restart_on_node_loss": False,
        "max_attempts": 2,
        "network": "host",
        "mounts": [{"source": "/a", "target": "/b", "read_only": False}],
    }
    task = parse_task(json.dumps(fields).encode())
    assert task.id == ID
    assert task.spec == records_pb2.TaskSpec(
        command="gzip",
        args=["-9", "ü"],
        env={"A": "1"},
        cwd="/tmp",
        stdin=b"\0\xff",
        name="n",
        labels={"a": "b"},
        requirements=records_pb2.Requirements(cpu=0.5, memory_bytes=1024, pids=3),
        timeout_s=1.5,
        grace_s=0,
        restart_on_node_loss=False,
        max_attempts=2,
        network=records_pb2.NETWORK_HOST,
        mounts=[records_pb2.Mount(source="/a", target="/b", read_only=False)],
    )


def test_absent_is_absent() -> None:
    assert parse_task(b'{"command": "true"}').spec == records_pb2.TaskSpec(command="true")


@pytest.mark.parametrize("word", ["none", "NETWORK_NONE"])
def test_words_of_the_command_line_and_of_the_proto(word: str) -> None:
    assert parse_task(json.dumps({"network": word}).encode()).spec.network == records_pb2.NETWORK_NONE


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"comand": "true"}', "comand: there is no such field"),
        (b'{"requirements": {"memory": "512M"}}', "requirements.memory: there is no such field"),
        (b'{"mounts": [{"source": "/a"}, {"from": "/a"}]}', r"mounts\[1\].from: there is no such field"),
        (b'{"cpu": 1}', "cpu: there is no such field"),
        (b'{"memory": "1G"}', "memory: there is no such field"),
        (b'{"command": 7}', "command"),
        (b'{"args": "x"}', "args"),
        (b'{"args": [1]}', "args"),
        (b'{"stdin": "*"}', "stdin"),
        (b'{"timeout_s": "soon"}', "timeout_s"),
        (b'{"requirements": {"memory_bytes": 9223372036854775808}}', "memory_bytes"),
        (b'{"requirements": {"pids": 1.5}}', "pids"),
        (b'{"max_attempts": 2147483648}', "max_attempts"),
        (b'{"requirements": []}', "requirements"),
        (b'{"network": "wifi"}', "network"),
        (b'{"command": "a", "command": "b"}', "command: is there twice"),
        (b'{"timeout_s": NaN}', "NaN is not JSON"),
        (b'{"id": "../etc"}', "is not a UUID"),
        (b'{"id": 7}', "id"),
        (b'["true"]', "is not a JSON object"),
        (b'{"command": ', "is not JSON"),
        (b'{"command": "\xff"}', "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"command": "\\ud800"}', "command"),
    ],
)
def test_mistakes_are_named(line: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_task(line)


def test_all_lines_are_read_and_numbered() -> None:
    lines = [b'{"command": "true"}\n', b"\n", b"oops\n", b'{"x": 1}\n', b'{"command": "false"}']
    tasks, errors = read_tasks(lines)
    assert [one.number for one in tasks] == [1, 5]
    assert [error.number for error in errors] == [3, 4]


def test_an_id_may_stand_in_one_line_only() -> None:
    line = json.dumps({"id": ID, "command": "true"}).encode()
    _, errors = read_tasks([line, line.replace(b"aaaa", b"AAAA")])
    assert [(error.number, error.message) for error in errors] == [(2, f"id {ID} stands on line 1 already")]


def test_a_file_of_nothing_but_mistakes_is_not_read_to_its_end() -> None:
    _, errors = read_tasks((b"oops" for _ in range(10**9)), errors_max=5)
    assert len(errors) == 5
