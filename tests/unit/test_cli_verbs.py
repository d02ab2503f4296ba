"""The verbs against a fake node with real grpc: what is printed, what is sent, and the exit codes."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from node.cli import failures
from pilfer.v1 import nodes_pb2, records_pb2, tasks_pb2
from tests.support.aside import Aside
from tests.support.fake_service import HOST_ID, NODE_ID, FakeCluster, FakeNode
from tests.support.wait import wait_until_sync

UNKNOWN = "ffffffff-0000-4000-8000-000000000000"
CHOSEN = "0190aaaa-0000-7000-8000-000000000001"


class Ran:
    """What one call of the program gave."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.bytes = out
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


Cli = Callable[..., Ran]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    address = f"unix:{tmp_path}/node.sock"
    monkeypatch.setenv("PILFER_ADDRESS", address)
    with FakeNode(cluster, address):
        yield cluster


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    def call(*arguments: str) -> Ran:
        code = failures.run(arguments)
        out, err = capfdbinary.readouterr()
        return Ran(code, out, err)

    return call


def ended(cluster: FakeCluster, task_id: str, exit_code: int = 0) -> None:
    cluster.start(task_id)
    cluster.end(task_id, records_pb2.Outcome(reason=records_pb2.REASON_EXITED, exit_code=exit_code))


# --- submit


def test_submit_prints_the_id(cluster: FakeCluster, cli: Cli) -> None:
    ran = cli("submit", "--", "echo", "--cpu", "--", "x")
    assert (ran.code, ran.lines, ran.err) == (0, [cluster.only_task_id()], "")
    spec = cluster.tasks[cluster.only_task_id()].spec
    assert spec == records_pb2.TaskSpec(command="echo", args=["--cpu", "--", "x"])


def test_submit_needs_no_dashes_where_it_is_clear(cluster: FakeCluster, cli: Cli) -> None:
    assert cli("submit", "--name", "n", "ls", "-l").code == 0
    spec = cluster.tasks[cluster.only_task_id()].spec
    assert spec == records_pb2.TaskSpec(command="ls", args=["-l"], name="n")


def test_every_option_of_a_task(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\0\xff")
    options = (
        "--cpu 0.5 --memory 512M --pids 7 --io-read 10M --io-write 1K/s --timeout 1m30s --grace 500ms --env A=1=2"
        f" --env B= --cwd /tmp --stdin {tmp_path}/in --mount /a:/b --mount /c:/d:rw --network host --name n --label a=b"
        f" --label c=d --no-restart --max-attempts 3 --id {CHOSEN.upper()}"
    )
    ran = cli("submit", "--json", *options.split(), "--", "true")
    assert (ran.code, ran.json) == (0, [{"id": CHOSEN}])
    assert cluster.tasks[CHOSEN].spec == records_pb2.TaskSpec(
        command="true",
        env={"A": "1=2", "B": ""},
        cwd="/tmp",
        stdin=b"\0\xff",
        name="n",
        labels={"a": "b", "c": "d"},
        requirements=records_pb2.Requirements(
            cpu=0.5,
            memory_bytes=512 * 2**20,
            pids=7,
            io_read_bytes_per_s=10 * 2**20,
            io_write_bytes_per_s=1024,
        ),
        timeout_s=90,
        grace_s=0.5,
        restart_on_node_loss=False,
        max_attempts=3,
        network=records_pb2.NETWORK_HOST,
        mounts=[
            records_pb2.Mount(source="/a", target="/b", read_only=True),
            records_pb2.Mount(source="/c", target="/d", read_only=False),
        ],
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "lots"], "--memory"),
        (["--memory", "-5"], "--memory"),
        (["--timeout", "soon"], "--timeout"),
        (["--io-read", "fast"], "--io-read"),
        (["--cpu", "many"], "--cpu"),
        (["--env", "A"], "--env"),
        (["--label", "=x"], "--label"),
        (["--mount", "/a"], "--mount"),
        (["--mount", "/a:/b:rx"], "--mount"),
        (["--id", "../x"], "--id"),
        (["--pids", "1.5"], "--pids"),
        (["--no-such"], "--no-such"),
        (["--network", "wifi"], "--network"),
    ],
)
def test_wrong_options_are_usage_errors_that_name_them(
    cluster: FakeCluster, cli: Cli, options: list[str], words: str
) -> None:
    ran = cli("submit", *options, "--", "true")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert cluster.tasks == {}


def test_no_command_is_a_usage_error(cluster: FakeCluster, cli: Cli) -> None:
    for verb in ("submit", "run"):
        ran = cli(verb, "--name", "n")
        assert ran.code == 2
        assert "CMD" in ran.err


def test_what_the_node_refuses_is_listed_by_field_and_option(cluster: FakeCluster, cli: Cli) -> None:
    ran = cli("submit", "--cpu", "-1", "--", "true")
    assert (ran.code, ran.out) == (2, "")
    assert "requirements.cpu (--cpu): must be more than 0" in ran.err
    ran = cli("submit", "--", "")
    assert (ran.code, "command (CMD): is empty" in ran.err) == (2, True)


def test_an_argument_that_is_not_unicode(cluster: FakeCluster, cli: Cli) -> None:
    ran = cli("submit", "--", "echo", os.fsdecode(b"\xff"))
    assert (ran.code, ran.out) == (2, "")
    assert "args (ARG): is not valid Unicode text" in ran.err


def test_stdin_is_bounded(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(2**20 + 1))
    ran = cli("submit", "--stdin", f"{tmp_path}/big", "--", "cat")
    assert (ran.code, "--mount" in ran.err) == (2, True)
    ran = cli("submit", "--stdin", f"{tmp_path}/nothing", "--", "cat")
    assert ran.code == 1
    assert f"{tmp_path}/nothing: No such file or directory" in ran.err


def test_the_same_id_with_another_spec(cluster: FakeCluster, cli: Cli) -> None:
    assert cli("submit", "--id", CHOSEN, "--", "true").code == 0
    assert cli("submit", "--id", CHOSEN, "--", "true").code == 0
    ran = cli("submit", "--id", CHOSEN, "--", "false")
    assert (ran.code, ran.out) == (1, "")
    assert CHOSEN in ran.err


def test_submit_and_wait(cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    add = cluster.add

    def add_and_end(new: tasks_pb2.NewTask) -> None:
        add(new)
        ended(cluster, new.id, exit_code=int(new.spec.args[0]))

    monkeypatch.setattr(cluster, "add", add_and_end)
    assert cli("submit", "--wait", "--", "exit", "0").code == 0
    ran = cli("submit", "--wait", "--", "exit", "3")
    assert ran.code == 1
    assert "exited with 3" in ran.err
    ran = cli("submit", "--wait", "--json", "--", "exit", "3")
    assert (ran.code, [task["exit_code"] for task in ran.json]) == (1, [3])


# --- submit --from


def lines_file(tmp_path: Path, *lines: object) -> str:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def test_a_file_of_tasks(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    lines = [{"command": "echo", "args": [str(n)]} for n in range(2500)]
    lines[7] = {"command": "echo", "args": ["7"], "id": CHOSEN}
    ran = cli("submit", "--from", lines_file(tmp_path, *lines))
    assert (ran.code, ran.err) == (0, "")
    assert [cluster.tasks[task_id].spec.args[0] for task_id in ran.lines] == [str(n) for n in range(2500)]
    assert ran.lines[7] == CHOSEN
    assert [request.validate_only for request in cluster.submits] == [True] * 3 + [False] * 3


def test_a_file_on_stdin(cluster: FakeCluster, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(lines_file(tmp_path, {"command": "true"})).open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        ran = cli("submit", "--json", "--from", "-")
    assert (ran.code, ran.json) == (0, [{"id": cluster.only_task_id()}])


def test_nothing_of_a_file_with_an_error_is_submitted(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    ran = cli("submit", "--from", lines_file(tmp_path, {"command": "true"}, {"comand": "x"}, "oops"))
    assert (ran.code, ran.out, cluster.submits) == (2, "", [])
    assert "line 2: comand: there is no such field" in ran.err
    assert "line 3: is not JSON" in ran.err


def test_what_the_node_refuses_is_told_by_line(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    """Also where the wrong line is in a later batch, and where empty lines stand before it."""
    good = [{"command": "true"}] * 1500
    ran = cli("submit", "--from", lines_file(tmp_path, "", *good, {"command": "x", "requirements": {"cpu": -1}}))
    assert (ran.code, ran.out, cluster.tasks) == (2, "", {})
    assert "line 1502: requirements.cpu: must be more than 0" in ran.err


def test_an_empty_file(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    ran = cli("submit", "--from", lines_file(tmp_path))
    assert (ran.code, ran.out) == (0, "")
    assert "no task" in ran.err
    assert cli("submit", "--from", f"{tmp_path}/nothing").code == 1


def test_a_file_goes_without_options_of_a_task(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    file = lines_file(tmp_path, {"command": "true"})
    for arguments in (["--name", "n"], ["--", "true"], ["--no-restart"], ["--label", "a=b"]):
        assert cli("submit", "--from", file, *arguments).code == 2
    assert cluster.tasks == {}


def test_the_ids_of_stored_batches_are_printed_when_a_later_one_fails(
    cluster: FakeCluster, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = cluster.add

    def add_and_fill_up(new: tasks_pb2.NewTask) -> None:
        add(new)
        if len(cluster.tasks) == 1000:
            cluster.fail_next("Submit", grpc.StatusCode.RESOURCE_EXHAUSTED)

    monkeypatch.setattr(cluster, "add", add_and_fill_up)
    ran = cli("submit", "--from", lines_file(tmp_path, *[{"command": "true"}] * 1500))
    assert ran.code == 1
    assert ran.lines == [*cluster.tasks]
    assert "1000 tasks before these are stored" in ran.err


# --- status, list, wait, cancel, log, nodes


def test_status_for_programs_and_for_people(cluster: FakeCluster, cli: Cli) -> None:
    (task_id,) = cli("submit", "--name", "n", "--", "echo", "a b").lines
    ended(cluster, task_id, exit_code=3)
    (found,) = cli("status", task_id[:30], "--json").json
    assert (found["id"], found["status"], found["exit_code"], found["reason"], found["attempt"]) == (
        task_id,
        "complete",
        3,
        "exited",
        1,
    )
    ran = cli("status", task_id)
    assert ran.code == 0
    assert "complete: exited with 3" in ran.out
    assert "echo 'a b'" in ran.out


def test_status_of_the_unknown_and_the_ambiguous(cluster: FakeCluster, cli: Cli) -> None:
    known = cli("submit", "--", "true").lines[0]
    cli("submit", "--", "true")
    assert cli("status", UNKNOWN).code == 3
    assert cli("status", known[:4]).code == 2
    ran = cli("status", "--json", UNKNOWN, known)
    assert (ran.code, [task["id"] for task in ran.json]) == (3, [known])
    assert UNKNOWN in ran.err


def test_list_streams_all_as_json_and_shows_the_newest_hundred(cluster: FakeCluster, cli: Cli) -> None:
    for number in range(130):
        cluster.add(
            tasks_pb2.NewTask(
                id=f"0190aaaa-0000-7000-8000-{number:012}",
                spec=records_pb2.TaskSpec(command="true", name=f"n{number}", labels={"odd": str(number % 2)}),
            )
        )
    ids = [*cluster.tasks]
    ended(cluster, ids[5])
    assert [task["id"] for task in cli("list", "--json").json] == ids
    assert [task["id"] for task in cli("list", "--json", "--label", "odd=1").json] == ids[1::2]
    assert [task["id"] for task in cli("list", "--json", "--status", "complete").json] == [ids[5]]
    assert [task["id"] for task in cli("list", "--json", "--name", "n7").json] == [ids[7]]
    assert [task["id"] for task in cli("list", "--json", "--limit", "2").json] == [ids[129], ids[128]]
    ran = cli("list")
    assert [line.split()[0] for line in ran.lines[1:]] == ids[:29:-1]
    assert "The newest 100 are shown" in ran.err
    ran = cli("list", "--limit", "130")
    assert (len(ran.lines), ran.err) == (131, "")
    assert cli("list", "--status", "nonsense").code == 2


def test_the_node_of_a_task_is_named_where_there_are_several(cluster: FakeCluster, cli: Cli) -> None:
    (task_id,) = cli("submit", "--", "true").lines
    cluster.nodes.append(nodes_pb2.NodeView(state="ready", node=records_pb2.Node(host_id=HOST_ID, name="anna")))
    assert cluster.calls["ListNodes"] == 0
    cli("list")
    assert cluster.calls["ListNodes"] == 0, "no task has run"
    ended(cluster, task_id)
    assert "NODE" not in cli("list").out, "there is only one"
    cluster.nodes.append(nodes_pb2.NodeView(state="gone", node=records_pb2.Node(host_id=UNKNOWN, name="bert")))
    header, row = cli("list").lines
    assert header.split()[:5] == ["ID", "NAME", "STATUS", "HOW", "NODE"]
    assert "anna" in row
    assert f"anna ({NODE_ID})" in cli("status", task_id).out
    (found,) = cli("list", "--json").json
    assert (found["node_id"], found["host_id"]) == (NODE_ID, HOST_ID)
    # Tables do without names that cannot be had.
    cluster.fail_next("ListNodes", grpc.StatusCode.INTERNAL, grpc.StatusCode.INTERNAL)
    assert cli("list").code == 0
    assert f"node      {NODE_ID}" in cli("status", task_id).out


def test_wait(cluster: FakeCluster, cli: Cli) -> None:
    good, bad, open_ = (cli("submit", "--", "true").lines[0] for _ in range(3))
    ended(cluster, good)
    ended(cluster, bad, exit_code=1)
    assert cli("wait", good).code == 0
    ran = cli("wait", good, bad)
    assert (ran.code, bad in ran.err) == (1, True)
    ran = cli("wait", "--timeout", "200ms", good, open_)
    assert (ran.code, ran.out) == (124, "")
    assert "1 of 2 tasks" in ran.err
    assert [task["id"] for task in cli("wait", "--json", bad).json] == [bad]
    assert cli("wait", UNKNOWN).code == 3
    assert cli("wait").code == 2
    cli("cancel", open_)
    assert cli("wait", open_).code == 1


def test_a_wait_whose_time_is_up_without_a_quorum_does_not_say_that_tasks_have_not_ended(
    cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream stands and is silent, as it is where nothing happens."""
    monkeypatch.setattr("node.cli.wait.LAST_LOOK_S", 0.3)
    done, open_ = (cli("submit", "--", "true").lines[0] for _ in range(2))
    ended(cluster, done)

    def lose_quorum() -> None:
        wait_until_sync(lambda: cluster.calls["Watch"] > 0, what="it waits")
        cluster.has_quorum = False

    with Aside(lose_quorum):
        ran = cli("wait", "--timeout", "500ms", done, open_)
    assert (ran.code, ran.out) == (5, "")
    assert "the time of 500ms is up and the cluster does not answer, so it is not known whether 1 of 2 tasks" in ran.err
    assert "have not ended" not in ran.err
    assert "node recover" in ran.err


def test_a_wait_that_never_read_a_state_does_not_say_that_tasks_have_not_ended(
    cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.wait.LAST_LOOK_S", 0.3)
    (task_id,) = cli("submit", "--", "true").lines
    cluster.mute |= {"Watch", "Status"}
    ran = cli("wait", "--timeout", "200ms", task_id)
    assert (ran.code, ran.out) == (5, "")
    assert "it is not known whether 1 of 1 tasks have ended: no answer within 0.3 s" in ran.err
    cluster.mute.clear()
    cluster.has_quorum = False
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    ran = cli("wait", task_id)
    assert (ran.code, "Whether 1 of 1 tasks have ended is not known" in ran.err) == (5, True)


def test_a_wait_through_a_short_silence_knows_what_has_not_ended(cluster: FakeCluster, cli: Cli) -> None:
    """The watch breaks in the middle and cannot be begun again for a moment; when the time is up, all is well."""
    (task_id,) = cli("submit", "--", "true").lines

    def break_it() -> None:
        wait_until_sync(lambda: cluster.calls["Watch"] > 0, what="it waits")
        cluster.fail_next("Watch", grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
        cluster.break_streams()

    with Aside(break_it):
        ran = cli("wait", "--timeout", "800ms", task_id)
    assert (ran.code, "1 of 1 tasks have not ended within 800ms" in ran.err) == (124, True)


def test_what_ended_while_nothing_could_be_heard_counts_as_ended(cluster: FakeCluster, cli: Cli) -> None:
    quiet, open_ = (cli("submit", "--", "true").lines[0] for _ in range(2))
    cluster.mute.add("Watch")
    ended(cluster, quiet)
    assert cli("wait", "--timeout", "200ms", quiet[:-1]).code == 0
    ran = cli("wait", "--timeout", "200ms", "--json", quiet, open_)
    assert (ran.code, [task["id"] for task in ran.json]) == (124, [quiet])
    assert "1 of 2 tasks have not ended within 200ms" in ran.err


def test_cancel(cluster: FakeCluster, cli: Cli) -> None:
    queued, running, done = (cli("submit", "--label", f"n={n}", "--", "true").lines[0] for n in range(3))
    cluster.start(running)
    ended(cluster, done)
    ran = cli("cancel", queued, running, done)
    assert ran.code == 0
    assert [line.split()[1].rstrip(":") for line in ran.lines] == ["canceled", "requested", "already"]
    ran = cli("cancel", "--json", UNKNOWN)
    assert (ran.code, ran.json) == (3, [{"id": UNKNOWN, "step": "not_found", "status": None}])
    ran = cli("cancel", "--json", "--label", "n=1")
    assert (ran.code, [result["id"] for result in ran.json]) == (0, [running])
    assert cli("cancel", "--label", "n=2").code == 0, "it has ended: nothing to do"
    assert cli("cancel").code == 2
    assert cli("cancel", "--label", "n=1", running).code == 2


def test_log(cluster: FakeCluster, cli: Cli) -> None:
    (task_id,) = cli("submit", "--", "true").lines
    cluster.start(task_id)
    blob = bytes(range(256)) * 400
    cluster.write(task_id, blob)
    cluster.write(task_id, b"oh\nno\n", stderr=True)
    ran = cli("log", task_id)
    assert (ran.code, ran.bytes, ran.err) == (0, blob, "oh\nno\n")
    ran = cli("log", "--stream", "stderr", task_id)
    assert (ran.out, ran.err) == ("oh\nno\n", "")
    assert cli("log", "--stream", "stderr", "--tail", "1", task_id).out == "no\n"
    assert cli("log", task_id, "--attempt", "2").code == 3
    assert cli("log", UNKNOWN).code == 3
    cluster.requeue(task_id)
    cluster.start(task_id)
    cluster.write(task_id, b"second")
    cluster.end(task_id)
    assert cli("log", "-f", task_id).out == "second"
    assert cli("log", task_id).err == ""
    assert cli("log", "--attempt", "1", "--stream", "stderr", task_id).out == "oh\nno\n"


def test_what_happens_to_a_log_is_told_on_stderr_and_the_bytes_stay_whole(cluster: FakeCluster, cli: Cli) -> None:
    (task_id,) = cli("submit", "--", "true").lines
    cluster.start(task_id)
    cluster.write(task_id, b"before ")
    cluster.tell(task_id, "attempt 1 is told about")
    cluster.write(task_id, b"after")
    cluster.end(task_id)
    for arguments in (("log", task_id), ("log", "-f", "--stream", "stdout", task_id)):
        ran = cli(*arguments)
        assert (ran.code, ran.out, ran.err) == (0, "before after", "node: attempt 1 is told about\n")


def test_a_log_whose_host_is_gone_is_refused_with_what_the_node_says(cluster: FakeCluster, cli: Cli) -> None:
    (task_id,) = cli("submit", "--", "true").lines
    cluster.start(task_id)
    cluster.end(task_id)
    cluster.fail_next("Log", grpc.StatusCode.FAILED_PRECONDITION)
    ran = cli("log", task_id)
    assert (ran.code, ran.out) == (1, "")
    assert "the test wants FAILED_PRECONDITION" in ran.err


def test_nodes(cluster: FakeCluster, cli: Cli) -> None:
    view = nodes_pb2.NodeView(state="ready", role="voter", load=0.5, running=2)
    view.node.id, view.node.name, view.node.version = "node-1", "box", "0.1.0"
    view.node.capacity.cpu, view.node.capacity.memory_bytes = 2, 2**30
    view.node.started_at.FromSeconds(1000)
    view.now.FromSeconds(1060)
    view.node.not_enforced.append("io limits: no io controller")
    cluster.nodes.append(view)
    (found,) = cli("nodes", "--json").json
    expected = {"id": "node-1", "state": "ready", "role": "voter", "load": 0.5, "running": 2, "age": 60.0}
    assert {key: found[key] for key in expected} == expected
    assert found["capacity"] == {"cpu": 2.0, "memory_bytes": 2**30}
    ran = cli("nodes")
    assert [word in ran.lines[1] for word in ("node-1", "box", "ready", "50%", "2 cpu, 1G", "1m")] == [True] * 6
    assert "box does not enforce: io limits" in ran.err


# --- run


def run_with(
    cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch, act: Callable[[str], None], *arguments: str
) -> Ran:
    """`node run`, where the cluster does `act` with the task as soon as it is there."""
    add = cluster.add

    def add_and_act(new: tasks_pb2.NewTask) -> None:
        add(new)
        act(new.id)

    monkeypatch.setattr(cluster, "add", add_and_act)
    return cli("run", *arguments, "--", "cmd")


def test_run_is_the_task(cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = bytes(range(256)) * 1000

    def act(task_id: str) -> None:
        cluster.start(task_id)
        cluster.write(task_id, blob)
        cluster.write(task_id, b"to stderr", stderr=True)
        cluster.end(task_id, records_pb2.Outcome(reason=records_pb2.REASON_EXITED, exit_code=42))

    ran = run_with(cluster, cli, monkeypatch, act)
    assert (ran.code, ran.bytes, ran.err) == (42, blob, "to stderr")


def test_run_says_why_it_did_not_run(cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(task_id: str) -> None:
        cluster.start(task_id)
        outcome = records_pb2.Outcome(
            reason=records_pb2.REASON_SETUP_FAILED, step="exec", errno=2, detail="no such command: cmd"
        )
        cluster.end(task_id, outcome, status=records_pb2.TASK_STATUS_FAILED)

    ran = run_with(cluster, cli, monkeypatch, act)
    assert (ran.code, ran.out) == (127, "")
    assert "no such command: cmd" in ran.err


def test_run_of_what_was_canceled(cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(task_id: str) -> None:
        canceled = records_pb2.Outcome(reason=records_pb2.REASON_CANCELED)
        cluster.end(task_id, canceled, status=records_pb2.TASK_STATUS_CANCELED)

    assert run_with(cluster, cli, monkeypatch, act).code == 130


def test_run_that_loses_the_node_says_how_to_come_back(
    cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.fail_next("Log", grpc.StatusCode.PERMISSION_DENIED)
    ran = run_with(cluster, cli, monkeypatch, lambda _task_id: None)
    assert ran.code == 4
    assert f"node log -f {cluster.only_task_id()}" in ran.err


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION])
def test_run_tells_the_end_even_where_the_output_is_out_of_reach(
    cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode
) -> None:
    cluster.fail_next("Log", code)
    ran = run_with(cluster, cli, monkeypatch, lambda task_id: ended(cluster, task_id, exit_code=9))
    assert ran.code == 9
    assert "cannot be followed" in ran.err


# --- no node, not allowed


def test_no_node_at_all(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    ran = cli("list", "--address", f"unix:{tmp_path}/nowhere/node.sock")
    assert (ran.code, ran.out) == (5, "")
    assert f"no node answers at unix:{tmp_path}/nowhere/node.sock: No such file or directory" in ran.err
    assert "node start" in ran.err
    assert "No node answered. Is one running" in ran.err
    assert "quorum" not in ran.err
    assert "Traceback" not in ran.err


def test_a_node_that_is_just_starting_is_waited_for(cli: Cli, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/data/node.sock"
    node = FakeNode(FakeCluster(), address)

    def start() -> None:
        (tmp_path / "data").mkdir()
        node.start()

    late = threading.Timer(0.3, start)
    late.start()
    try:
        assert cli("list", "--json", "--address", address).code == 0
    finally:
        late.join()
        node.stop()


def test_a_node_that_stopped(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{tmp_path}/node.sock")
        for verb in (["list"], ["nodes"], ["status", UNKNOWN], ["submit", "true"], ["run", "true"], ["wait", UNKNOWN]):
            ran = cli(verb[0], "--address", f"unix:{tmp_path}/node.sock", *verb[1:])
            assert (ran.code, ran.out, "Traceback" in ran.err) == (5, "", False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_door_of_another_user(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    assert cli("list").code == 0
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        ran = cli("list")
    finally:
        os.seteuid(0)
    assert (ran.code, ran.out) == (4, "")
    assert "may not be opened by this user" in ran.err


def test_no_quorum_is_told(cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    cluster.fail_next("Submit", *[grpc.StatusCode.UNAVAILABLE] * 50)
    ran = cli("submit", "--", "true")
    assert (ran.code, ran.out) == (5, "")
    assert "may or may not have been stored" in ran.err


VERBS = (["list"], ["status", CHOSEN], ["log", CHOSEN], ["cancel", CHOSEN], ["submit", "true"], ["wait", CHOSEN])


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_node_without_a_quorum_is_told_from_no_node(
    cluster: FakeCluster, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    """Also where others were named that did not answer, and were asked last."""
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    cluster.has_quorum = False
    alone = f"unix:{tmp_path}/node.sock"
    for address in (alone, f"unix:{tmp_path}/a.sock,{alone},unix:{tmp_path}/b.sock"):
        ran = cli(verb[0], "--address", address, *verb[1:])
        assert (ran.code, ran.out) == (5, "")
        assert "nothing could be read" in ran.err
        assert "cannot reach a majority of etcd's voters" in ran.err
        assert "node recover" in ran.err
        assert "No node answered" not in ran.err


@pytest.mark.parametrize("verb", ["submit", "run"])
def test_a_submit_that_nobody_answers_says_so_and_how_to_do_it_again(
    cluster: FakeCluster, cli: Cli, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """grpc's words for it were "Stream removed (Deadline Exceeded)"."""
    monkeypatch.setattr("node.cli.connection.CALL_S", 0.5)
    monkeypatch.setattr("node.cli.output.SILENCE_S", 0.1)
    cluster.mute.add("Submit")
    ran = cli(verb, "--", "true")
    assert (ran.code, ran.out) == (5, "")
    meanwhile, error, *more = ran.err.splitlines()
    task_id = meanwhile.split()[5]
    assert uuid.UUID(task_id).version == 7
    assert meanwhile == f"no answer yet whether task {task_id} is stored; still trying"
    assert error == "node: no answer within 0.5 s"
    assert f"task {task_id} may or may not have been stored" in more[1]
    assert f"node {verb} --id {task_id}, and the rest as before" in more[2]


def test_a_file_that_nobody_answers_says_how_much_may_be_stored(
    cluster: FakeCluster, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 1.0)
    monkeypatch.setattr("node.cli.output.SILENCE_S", 0.2)
    add = cluster.add

    def add_a_batch(new: tasks_pb2.NewTask) -> None:
        add(new)
        cluster.has_quorum = len(cluster.tasks) < 1000

    monkeypatch.setattr(cluster, "add", add_a_batch)
    ran = cli("submit", "--from", lines_file(tmp_path, *[{"command": "true"}] * 1500))
    assert (ran.code, len(ran.lines)) == (5, 1000)
    assert "no answer yet whether more tasks are stored; still trying" in ran.err
    assert "Of the others 500 at most may be stored, too" in ran.err


def test_an_answer_in_time_needs_no_words(cluster: FakeCluster, cli: Cli) -> None:
    ran = cli("submit", "--id", CHOSEN, "--", "true")
    assert (ran.code, ran.err) == (0, "")


def test_of_several_addresses_one_that_answers_will_do(cluster: FakeCluster, cli: Cli, tmp_path: Path) -> None:
    nowhere = f"unix:{tmp_path}/nowhere/node.sock"
    both = f"{nowhere},unix:{tmp_path}/node.sock"
    (task_id,) = cli("submit", "--address", both, "--", "true").lines
    ended(cluster, task_id)
    assert cli("wait", "--address", both, task_id).code == 0
    wrong = cli("list", "--address", f"{nowhere},h")
    assert (wrong.code, wrong.out) == (2, "")
    assert "'h' (the second of 2 in " in wrong.err


def test_when_none_of_several_answers_each_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    ran = cli("list", "--address", f"unix:{tmp_path}/a.sock,unix:{tmp_path}/b.sock")
    assert ran.code == 5
    assert f"unix:{tmp_path}/a.sock: No such file or directory; unix:{tmp_path}/b.sock: No such file" in ran.err


@pytest.mark.parametrize("address", ["nonsense", "unix:", "h:0"])
def test_an_address_that_is_none(cli: Cli, address: str) -> None:
    assert cli("list", "--address", address).code == 2
