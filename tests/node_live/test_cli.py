"""The contract with scripts, word by word, against a real node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node_process import LiveNode, live_node, processes_in, require_node
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    # Tasks run as an ordinary user, and must reach it.
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)
    directory.chmod(0o777)
    return directory


@pytest.fixture(scope="module")
def node(shared_dir: Path) -> Iterator[LiveNode]:
    with live_node("--cpu", "2", "--allow-mount", str(shared_dir)) as started:
        yield started


@pytest.mark.parametrize(
    ("options", "command", "code"),
    [
        ("", "true", 0),
        ("", "exit 7", 7),
        ("", "exit 255", 255),
        ("", "kill -TERM $$", 143),
        ("", "kill -SEGV $$", 139),
        ("--timeout 300ms --grace 100ms", "sleep 100", 124),
        ("--timeout 300ms --grace 5s", "trap 'exit 0' TERM; while :; do sleep 0.05; done", 124),
        ("--memory 32M", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", 137),
    ],
)
def test_run_exits_as_the_task_did(node: LiveNode, options: str, command: str, code: int) -> None:
    ran = node.cli("run", *options.split(), "--", "sh", "-c", command)
    assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
    assert "Traceback" not in ran.stderr


def test_run_of_what_cannot_be_run(node: LiveNode) -> None:
    missing = node.cli("run", "--", "no-such-command")
    assert missing.returncode == 127
    assert "no such command" in missing.stderr
    assert node.cli("run", "--", "/etc/passwd").returncode == 126
    assert node.cli("run", "--", "/etc").returncode == 126
    assert node.cli("run", "--cwd", "/no/such/place", "--", "true").returncode == 125


def test_run_passes_bytes_unaltered_and_apart(node: LiveNode) -> None:
    script = "head -c 300000 /dev/urandom | tee /dev/fd/2"
    command = [sys.executable, "-m", "node", "run", "--", "sh", "-c", script]
    environment = os.environ | {"PILFER_ADDRESS": node.address}
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert len(ran.stdout) == 300_000
    assert ran.stdout == ran.stderr


def test_run_reads_what_it_is_given(node: LiveNode) -> None:
    assert node.cli("run", "--stdin", "-", "--", "cat", stdin="to cat").stdout == "to cat"


def test_a_task_sees_its_own_environment_alone(node: LiveNode) -> None:
    ran = node.cli("run", "--env", "A=1 2", "--", "env")
    found = dict(line.split("=", 1) for line in ran.stdout.splitlines())
    assert found["A"] == "1 2"
    assert {name for name in found if name.startswith("PILFER_")} == {
        "PILFER_TASK_ID",
        "PILFER_ATTEMPT",
        "PILFER_FENCE",
        "PILFER_NODE_ID",
    }
    assert found["PILFER_ATTEMPT"] == "1"
    assert uuid.UUID(found["PILFER_TASK_ID"]).version == 7
    assert "PILFER_ADDRESS" not in found


def test_the_json_of_status(node: LiveNode) -> None:
    task_id = node.cli("submit", "--name", "n", "--label", "a=b", "--wait", "--", "sh", "-c", "exit 3").stdout.strip()
    ran = node.cli("status", task_id[:-2], "--json")
    (found,) = map(json.loads, ran.stdout.splitlines())
    expected = {
        "id": task_id,
        "status": "complete",
        "exit_code": 3,
        "signal": None,
        "reason": "exited",
        "attempt": 1,
        "name": "n",
        "labels": {"a": "b"},
        "command": "sh",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["submitted_at"] <= found["started_at"] <= found["finished_at"]
    assert found["finished_at"].endswith("Z")
    assert found["usage"]["wall_s"] > 0
    assert uuid.UUID(found["node_id"])
    assert "exited with 3" in node.cli("status", task_id).stdout


def test_errors_have_their_exit_codes(node: LiveNode) -> None:
    unknown = str(uuid.uuid4())
    for verb in ("status", "log", "wait", "cancel"):
        ran = node.cli(verb, unknown)
        assert (ran.returncode, "Traceback" in ran.stderr) == (3, False), verb
    for _ in range(2):
        node.cli("submit", "--", "true")
    assert node.cli("status", "0").returncode == 2, "ambiguous"
    for bad in ("../x", "", "zz"):
        assert node.cli("status", bad).returncode == 2
    refused = node.cli("submit", "--mount", "/etc:/mnt", "--", "true")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--allow-mount" in refused.stderr
    assert node.cli("submit", "--cpu", "nan", "--", "true").returncode == 2
    assert "requirements.cpu (--cpu)" in node.cli("submit", "--cpu", "-1", "--", "true").stderr
    too_long = json.dumps({"command": "echo", "args": ["y" * 140_000]})
    refused = node.cli("submit", "--from", "-", stdin=too_long)
    assert (refused.returncode, "line 1: args[0]" in refused.stderr) == (2, True), refused.stderr
    assert node.cli("list", "--address", f"unix:{node.data_dir}/nothing.sock", timeout_s=30).returncode == 5


def test_a_mount_below_an_allowed_prefix(node: LiveNode, shared_dir: Path) -> None:
    (shared_dir / "in").write_text("content")
    ran = node.cli("run", "--mount", f"{shared_dir}:/mnt:rw", "--", "sh", "-c", "cat /mnt/in; echo out > /mnt/out")
    assert (ran.returncode, ran.stdout) == (0, "content"), ran.stderr
    assert (shared_dir / "out").read_text() == "out\n"


def test_a_file_of_tasks(node: LiveNode, tmp_path: Path) -> None:
    batch = uuid.uuid4().hex
    file = tmp_path / "tasks.jsonl"
    requirements = {"cpu": 0.05}
    lines = [
        {"command": "echo", "args": [str(n)], "labels": {"batch": batch}, "requirements": requirements}
        for n in range(1200)
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ran = node.cli("submit", "--from", str(file), "--wait", timeout_s=110)
    ids = ran.stdout.split()
    assert (ran.returncode, len({*ids})) == (0, 1200), ran.stderr
    listed = [json.loads(line) for line in node.cli("list", "--label", f"batch={batch}", "--json").stdout.splitlines()]
    assert [task["id"] for task in listed] == ids
    assert {task["status"] for task in listed} == {"complete"}
    assert node.cli("log", ids[777]).stdout == "777\n"
    table = node.cli("list", "--label", f"batch={batch}")
    assert len(table.stdout.splitlines()) == 101
    assert "100" in table.stderr


def test_a_file_with_an_error_submits_nothing(node: LiveNode, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    file = tmp_path / "tasks.jsonl"
    good = json.dumps({"command": "true", "name": name})
    file.write_text(f"{good}\n{json.dumps({'command': 'true', 'timeout_s': -1})}\n")
    ran = node.cli("submit", "--from", str(file))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "line 2: timeout_s" in ran.stderr
    assert node.cli("list", "--name", name, "--json").stdout == ""


def test_log_follows_tails_and_keeps_streams_apart(node: LiveNode) -> None:
    script = "for n in 1 2 3; do echo out$n; echo err$n >&2; sleep 0.1; done"
    task_id = node.cli("submit", "--", "sh", "-c", script).stdout.strip()
    ran = node.cli("log", "-f", task_id)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "out1\nout2\nout3\n", "err1\nerr2\nerr3\n")
    assert node.cli("log", "--stream", "stderr", "--tail", "1", task_id).stdout == "err3\n"
    assert node.cli("log", "--attempt", "2", task_id).returncode == 3


def test_wait_and_cancel(node: LiveNode) -> None:
    task_id = node.cli("submit", "--label", "w=1", "--", "sleep", "300").stdout.strip()
    late = node.cli("wait", "--timeout", "300ms", task_id)
    assert (late.returncode, late.stdout) == (124, "")
    canceled = node.cli("cancel", "--label", "w=1")
    assert canceled.returncode == 0
    assert task_id in canceled.stdout
    assert node.cli("wait", task_id).returncode == 1
    again = node.cli("cancel", "--json", task_id)
    assert json.loads(again.stdout)["step"] == "already_ended"


def test_ctrl_c_in_run_leaves_nothing_running(node: LiveNode) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "node", "run", "--", "sh", "-c", "echo here; sleep 300"],
        env=os.environ | {"PILFER_ADDRESS": node.address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    wait_until_sync(lambda: not processes_in(node.cgroups()), what="the task's processes are gone")


def test_env_lets_etcdctl_look(node: LiveNode) -> None:
    etcdctl = shutil.which("etcdctl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert etcdctl is not None, "set-up puts it beside the interpreter"
    task_id = node.cli("submit", "--wait", "--", "true").stdout.strip()
    exports = node.cli("env", "--data-dir", str(node.data_dir)).stdout
    script = f"{exports}\n'{etcdctl}' get --keys-only /task/{task_id}"
    ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert ran.stdout.split() == [f"/task/{task_id}"], ran.stderr


def test_nodes(node: LiveNode) -> None:
    (found,) = map(json.loads, node.cli("nodes", "--json").stdout.splitlines())
    assert (found["state"], found["capacity"]["cpu"], found["host_id"]) == ("ready", 2.0, node.host_id)
    assert found["id"] in node.cli("nodes").stdout


def test_a_wait_and_a_followed_log_outlive_a_node_that_is_killed(tmp_path: Path) -> None:
    with live_node("--cpu", "2") as node:
        script = "echo attempt $PILFER_ATTEMPT; [ $PILFER_ATTEMPT = 2 ] || sleep 300"
        task_id = node.cli("submit", "--", "sh", "-c", script).stdout.strip()
        following = _start(node, "log", "-f", task_id)
        waiting = _start(node, "wait", task_id)
        assert following.stdout is not None
        assert following.stdout.readline() == b"attempt 1\n"
        node.kill()
        node.start()
        out, _ = following.communicate(timeout=60)
        assert (following.returncode, out) == (0, b"attempt 2\n")
        waiting.communicate(timeout=60)
        assert waiting.returncode == 0


def _start(node: LiveNode, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "node", *arguments],
        env=os.environ | {"PILFER_ADDRESS": node.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_tcp_with_certificates_and_without(tmp_path: Path) -> None:
    with live_node("--cpu", "1", "--listen", "127.0.0.1:0") as node:
        (address,) = (json.loads(line)["address"] for line in node.cli("nodes", "--json").stdout.splitlines())
        certs = str(node.data_dir / "pki" / "client")
        ran = node.cli("run", "--address", address, "--certs", certs, "--", "echo", "over tls")
        assert (ran.returncode, ran.stdout) == (0, "over tls\n"), ran.stderr
        plain = node.cli("list", "--address", address, "--insecure", timeout_s=30)
        assert plain.returncode == 5, "the node speaks TLS alone"
        none = node.cli("list", "--address", address, "--certs", str(tmp_path))
        assert none.returncode == 2
        assert "ca.crt" in none.stderr


def test_a_data_directory_with_a_long_name(tmp_path: Path) -> None:
    """Its socket's path does not fit into an address (107 bytes)."""
    require_node()
    node = LiveNode(tmp_path / ("d" * 100) / "node", "--cpu", "1")
    node.data_dir.parent.mkdir()
    try:
        node.start()
        ran = node.cli("run", "--", "echo", "through a long door")
        assert (ran.returncode, ran.stdout) == (0, "through a long door\n"), ran.stderr
    finally:
        node.end()


def test_a_data_directory_in_use_is_refused(node: LiveNode) -> None:
    second = node.cli("start", "--data-dir", str(node.data_dir))
    assert (second.returncode, second.stdout) == (1, "")
    assert "in use" in second.stderr
    assert node.cli("run", "--", "true").returncode == 0, "the first one does not mind"
