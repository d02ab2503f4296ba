"""What a task wrote, on a real terminal: nothing of it acts there; in a file or a pipe it is the bytes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from node.cli.visible import RESET
from pilfer import TaskSpec
from pilfer.errors import InvalidRequest, NotFound, PilferError
from tests.hostile.nodes import HostileNode, hostile_node

pytestmark = [pytest.mark.isolation, pytest.mark.node]

#: Everything that a terminal takes orders from, and some that look like it; then all bytes there are.
WRITTEN = (
    b"\x1b[2J\x1b[1;1Hgone\x1b]0;title\x07\x1b]52;c;cm0gLXJmIH4K\x07\x1b[6n\x1b[c\x05\x1bP$qm\x1b\\\x1b#8\x1b(0\x0e"
    b"\x1b[?1049h\x1b[8mhidden\x1b[0m\x9b2J\x9d0;x\x9cover\rwritten\b\b\x7f\x1b[31mred \xe2\x80\xae evil \xc2\x9b2J\n"
    + bytes(range(256))
    + b" no newline at the end"
)
_SGR = re.compile(rb"\x1b\[[0-9;:]*m")
_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def node() -> Iterator[HostileNode]:
    with hostile_node() as found:
        yield found


@pytest.fixture(scope="module")
def written(node: HostileNode) -> str:
    """Id of a task that has written it to both streams."""
    spec = TaskSpec.of("sh", "-c", "cat >got; cat got; cat got >&2", stdin=WRITTEN)
    return node.client.wait(node.client.submit(spec)).id


def on_a_terminal(node: HostileNode, *args: str) -> bytes:
    """What the command line sends to a terminal that it is alone with; nothing is answered to what it asks for."""
    ours, theirs = pty.openpty()
    try:
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST  # what is sent is what is read
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        environment = os.environ | {"PILFER_ADDRESS": node.node.address, "TERM": "xterm-256color", "COLUMNS": "200"}
        command = [sys.executable, "-m", "node", *args]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as running:
            os.close(theirs)
            theirs = -1
            return _read_to_the_end(ours, running)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _read_to_the_end(fd: int, running: subprocess.Popen[bytes]) -> bytes:
    deadline = time.monotonic() + _PATIENCE_S
    found = b""
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 0.5)[0]:
            try:
                found += os.read(fd, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                return found
    running.kill()
    raise AssertionError(f"it did not end: {found!r}")


def acting(shown: bytes) -> list[bytes]:
    """What in it a terminal would take as an order, colours apart; a terminal decodes UTF-8 first."""
    text = _SGR.sub(b"", shown).decode("utf-8", "surrogateescape")
    return [c.encode("utf-8", "surrogateescape") for c in text if c not in "\n\t" and not c.isprintable()]


def test_the_log_on_a_terminal(node: HostileNode, written: str) -> None:
    shown = on_a_terminal(node, "log", written)
    assert acting(shown) == []
    assert b"^[[2J^[[1;1Hgone^[]0;title^G^[]52;c;cm0gLXJmIH4K^G" in shown
    assert b"over^M\nwritten^H^H^?\x1b[31mred \\u202e evil \\x9b2J" in shown
    assert b"^[[8mhidden" in shown
    assert shown.count(b"no newline at the end") == 2
    assert shown.endswith((RESET.encode(), b"end"))


def test_a_task_in_the_foreground_on_a_terminal(node: HostileNode) -> None:
    script = "printf '\\033]0;title\\007\\033[2Jtext\\n'; printf '\\233\\rother\\n' >&2"
    shown = on_a_terminal(node, "run", "--", "sh", "-c", script)
    assert acting(shown) == []
    assert b"^[]0;title^G^[[2Jtext\n" in shown
    assert b"\\x9b^M\nother" in shown


def test_raw_passes_everything(node: HostileNode, written: str) -> None:
    assert on_a_terminal(node, "log", "--raw", "--stream", "stdout", written) == WRITTEN
    assert acting(WRITTEN)  # so that its absence above means something


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_gets_the_bytes(node: HostileNode, written: str, stream: str) -> None:
    environment = os.environ | {"PILFER_ADDRESS": node.node.address}
    command = [sys.executable, "-m", "node", "log", "--stream", stream, written]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == WRITTEN


def test_one_stream_may_be_a_file_and_the_other_a_terminal(
    node: HostileNode, written: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("out") / "file"
    script = f"{sys.executable} -m node log {written} >{file}"
    ours, theirs = pty.openpty()
    environment = os.environ | {"PILFER_ADDRESS": node.node.address}
    with subprocess.Popen(["sh", "-c", script], stdin=theirs, stderr=theirs, env=environment) as running:
        os.close(theirs)
        shown = _read_to_the_end(ours, running)
    os.close(ours)
    assert file.read_bytes() == WRITTEN
    assert acting(shown.replace(b"\r\n", b"\n")) == []


_EVIL = "\x1b]0;x\x07\x1b[2J\u202eevil\r\n\x9b1m"


def test_commands_labels_and_errors_on_a_terminal(node: HostileNode) -> None:
    """A task's command and arguments may hold anything that execve takes; its end is told in words of ours."""
    ids = [
        node.client.submit(TaskSpec.of("echo", _EVIL, env={"EVIL": _EVIL})),
        node.client.submit(TaskSpec.of(f"/no/such/{_EVIL}")),
        node.client.submit(TaskSpec.of("true", cwd=f"/no/such/{_EVIL}")),
    ]
    for task_id in ids:
        node.client.wait(task_id)
    for verb in (
        ["list"],
        *(["status", task_id] for task_id in ids),
        *(["why", task_id] for task_id in ids),
        ["nodes"],
    ):
        shown = on_a_terminal(node, *verb)
        assert acting(shown) == [], (verb, shown)
        assert shown.count(b"\n") >= 1
    assert acting(on_a_terminal(node, "run", "--", f"/no/such/{_EVIL}")) == []
    # A node in the foreground has its own log on a terminal.
    assert acting(node.node.log.read_bytes()) == []


@pytest.mark.parametrize(
    "verb", [["status"], ["log"], ["cancel"], ["why"], ["wait"], ["drain"], ["remove"]], ids=lambda verb: str(verb[0])
)
def test_names_that_do_not_exist_on_a_terminal(node: HostileNode, verb: list[str]) -> None:
    """What is not found is named in the message; whoever typed it may have pasted it."""
    assert acting(on_a_terminal(node, *verb, f"x{_EVIL}")) == []


def test_files_that_cannot_be_read_on_a_terminal(node: HostileNode) -> None:
    assert acting(on_a_terminal(node, "submit", "--from", f"no such {_EVIL}")) == []


@pytest.mark.parametrize("name", [_EVIL, "a\nb", "\x00", "tab\t", "\u202e", "\ue0001"])
def test_names_and_labels_that_act_are_refused(node: HostileNode, name: str) -> None:
    for options in ({"name": name}, {"labels": {"key": name}}, {"labels": {name: "value"}}):
        with pytest.raises(InvalidRequest) as refused:
            node.client.submit(TaskSpec.of("true", **options))
        assert refused.value.message.isprintable() or "\n" in refused.value.message
        for violation in refused.value.violations:
            assert violation.field.isprintable()
            assert violation.description.isprintable()


@pytest.mark.parametrize(
    "task_id", ["../../../../etc/passwd", "..", "/etc/passwd", "a/b", "\x1b[2J", "*", "", "x" * 10_000]
)
def test_ids_that_are_paths(node: HostileNode, task_id: str) -> None:
    """An id becomes part of names of files and keys: only a UUID is one."""
    with pytest.raises(InvalidRequest):
        node.client.submit(TaskSpec.of("true"), task_id=task_id or " ")
    for ask in (node.client.status, node.client.cancel, lambda id_: [*node.client.log(id_)], node.client.why):
        with pytest.raises((InvalidRequest, NotFound)) as refused:
            ask(task_id)
        assert isinstance(refused.value, PilferError)
        assert len(refused.value.message) < 1000
