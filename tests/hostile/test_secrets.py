"""The secrets of the node and of other tasks: files, environment, memory, command lines, what was used before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from pilfer import TaskSpec
from tests.hostile.harness import Hostile
from tests.hostile.nodes import HostileNode, hostile_node
from tests.isolation_live.conftest import running

pytestmark = pytest.mark.isolation


@pytest.fixture(scope="module")
def node() -> Iterator[HostileNode]:
    with hostile_node("--listen", "127.0.0.1:0") as found:
        yield found


@pytest.mark.node
def test_the_nodes_directory(node: HostileNode) -> None:
    """Keys, certificates, etcd's data, logs, scratch: where they lie nothing is."""
    data_dir = node.node.data_dir
    wanted = [
        data_dir,
        *(data_dir / name for name in ("pki", "pki/node.key", "pki/ca.key", "etcd/data", "logs", "host_id")),
    ]
    assert all(path.exists() for path in wanted)
    report = node.run("searching", "files", *map(str, wanted))
    assert report.succeeded == frozenset(), report.said
    assert report.get(f"list {data_dir}") == "refused ENOENT"  # it is there, and empty


@pytest.mark.node
def test_that_it_is_seen_where_it_is_not_hidden(node: HostileNode) -> None:
    """Its parent is in the view, so that it is the cover that hides it."""
    report = node.run("searching", "files", str(node.node.data_dir.parent))
    assert report.get(f"list {node.node.data_dir.parent}") == "SUCCEEDED node node.log"


@pytest.mark.node
def test_the_environment_and_the_command_lines_of_others(node: HostileNode) -> None:
    """A word that another task has in its environment, its arguments, its files and its output is nowhere."""
    word = f"word{secrets.token_hex(8)}"
    script = f"echo {word} >/tmp/{word}; echo {word} >{word}; echo {word}; exec sleep 100"
    other = node.client.submit(TaskSpec.of("sh", "-c", script, env={"SECRET": word}, cpu=0.1))
    try:
        wait_for_output(node, other, word)
        report = node.run("searching", "everywhere", word[::-1], cpu=0.5)
        assert int(report.get("looked into")) > 500
        assert report.get("found in") == ""
    finally:
        node.client.cancel(other)
        node.client.wait(other)


def wait_for_output(node: HostileNode, task_id: str, word: str) -> None:
    chunks = node.client.log(task_id, follow=True)
    seen = b""
    for chunk in chunks:
        seen += chunk.data
        if word.encode() in seen:
            chunks.close()
            return
    raise AssertionError(f"it ended without having said {word}: {seen!r}")


@pytest.mark.node
def test_that_a_word_is_found_where_it_is(node: HostileNode) -> None:
    word = f"word{secrets.token_hex(8)}"
    report = node.run("searching", "everywhere", word[::-1], env={"SECRET": word}, cpu=0.5)
    assert "/environ" in report.get("found in")


async def test_the_environment_of_the_node_is_not_in_any_memory(
    config: SpawnerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the node has in its environment, and what is in the spawner's own configuration, is not in the memory that
    PID 1 was cloned with nor in any page that the kernel gives out."""
    word = f"word{secrets.token_hex(12)}"
    monkeypatch.setenv("PILFER_TEST_SECRET", word)
    async for runner in running(config):
        hostile = Hostile(runner)
        # A task before it has the word in its memory, in pages that are free afterwards.
        await runner.run("python3", "-c", f"held = b'{word}' * 1000000", env={"SECRET": word})
        report = await hostile.run("searching", "memory", word[::-1], config.host_id[::-1])
        assert report.get("own memory").startswith("0 in")
        assert int(report.get("own memory").split()[2]) >= 4
        assert report.get("new pages") == "zero"
        assert report.get("memory of PID 1") == report.get("environment of PID 1") == "refused EACCES"
        assert word not in report.stdout
        # PID 1 has the spawner's command line: descriptors and places of our code, nothing of the configuration.
        assert config.host_id not in report.get("arguments of PID 1")
        assert str(config.scratch_root) not in report.get("arguments of PID 1")
        await _pid_1_has_nothing(hostile, word, config)


async def _pid_1_has_nothing(hostile: Hostile, word: str, config: SpawnerConfig) -> None:
    """Read from outside, as root: even if a task could read PID 1, it would not find them."""
    sandbox = await hostile.runner.start("sh", "-c", "echo there; exec sleep 100", says="there")
    try:
        found = _memory_of(sandbox.started.pid)
        assert len(found) > 1 << 16
        for secret in (word, "PILFER_TEST_SECRET", config.host_id):
            assert secret.encode() not in found, secret
    finally:
        sandbox.kill()
        await sandbox.wait()


def _memory_of(pid: int) -> bytes:
    found = bytearray()
    mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, *_ = line.split()
            if "r" not in rights or "[v" in line:
                continue
            start, end = (int(text, 16) for text in area.split("-"))
            try:
                found += os.pread(mem, end - start, start)
            except OSError:
                continue
    finally:
        os.close(mem)
    return bytes(found)


async def test_that_memory_is_searched(hostile: Hostile) -> None:
    """A word that the task does have is found."""
    word = f"word{secrets.token_hex(12)}"
    report = await hostile.run("searching", "memory", word[::-1], env={"SECRET": word})
    assert int(report.get("own memory").split()[0]) >= 1


@pytest.mark.node
def test_a_task_reaches_no_other_tasks_files(node: HostileNode) -> None:
    """Scratch, /tmp and logs of one that runs at the same time, at the paths that they have on the machine."""
    other = node.client.submit(TaskSpec.of("sh", "-c", "echo x >mine; echo there; exec sleep 100", cpu=0.1))
    try:
        wait_for_output(node, other, "there")
        data_dir = node.node.data_dir
        wanted = [str(path) for root in ("scratch", "logs") for path in (data_dir / root).rglob("*") if path.is_file()]
        assert any(path.endswith("/mine") for path in wanted)
        report = node.run("searching", "files", *wanted[:200], "/home", "/.pilfer", "/.pilfer-empty")
        assert report.succeeded == {"list /home"}, report.said
        assert report.get("list /home") == "SUCCEEDED task"
    finally:
        node.client.cancel(other)
        node.client.wait(other)
