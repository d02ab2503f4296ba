"""nodes, drain, remove, why: the verbs against nodes on real grpc servers over a fake etcd."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pytest

from etcd import cluster_codec, keys
from etcd.port import Delete, Put, Range, Txn
from node.cli import drain as drain_verb
from node.cli import failures
from node.cli.render_nodes import NODE_COLUMNS
from node.core.model import Requirements, TaskSpec
from tests.support.api_node import STARTED_AT, ApiNode, api_nodes, come, go, host_of, no_quorum, node_record
from tests.support.fake_store import FakeStore
from tests.support.tasks import TIMEOUT_S, new_task, queued
from tests.support.wait import wait_until

N1 = node_record(1)
#: Its name would clear a terminal's screen.
ODD = node_record(2, name="n2\x1b[2J", not_enforced=("memory: no controller",))
N3 = node_record(3)


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Coroutine[Any, Any, Ran]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the program in a thread, while the nodes answer on the loop."""
    monkeypatch.setattr(drain_verb, "LOOK_EVERY_S", 0.02)

    async def call(node: ApiNode, *arguments: str) -> Ran:
        door = ("--address", node.node.address, "--insecure")
        code = await asyncio.wait_for(asyncio.to_thread(failures.run, [arguments[0], *door, *arguments[1:]]), TIMEOUT_S)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call


def is_drained(store: FakeStore, host_id: str) -> bool:
    return bool(store.read(Range(keys.drained_key(host_id))).kvs)


# -- nodes ----------------------------------------------------------------------------------------------------------


async def test_the_json_of_nodes_is_a_contract(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, ODD) as (n1, n2):
        n1.condition = replace(n1.condition, load=0.25, running=2, reserved_cpu=1.0, role="voter")
        await n2.server.stop(None)
        gone = cluster_codec.encode_host(host_of(N3, last_seen=1_800_000_000.5))
        await n1.etcd.txn(Txn(success=(Put(keys.host_key(N3.host_id), gone),)))
        ran = await cli(n1, "nodes", "--json")
        assert ran.code == 0
        first, silent, last = ran.json
        assert first.pop("age") == pytest.approx(time.time() - STARTED_AT, abs=TIMEOUT_S)
        assert first == {
            "id": N1.id,
            "name": "n1",
            "host_id": N1.host_id,
            "address": n1.node.address,
            "state": "ready",
            "role": "client",
            "load": 0.25,
            "capacity": {"cpu": 4.0, "memory_bytes": 8 << 30},
            "reserved": {"cpu": 1.0, "memory_bytes": 0},
            "running": 2,
            "version": "0.1.0",
            "etcd_version": "3.5.30",
            "started_at": "2027-01-15T08:00:00.000000Z",
            "last_seen": None,
            "not_enforced": [],
            "warnings": [],
        }
        assert [*silent] == [*last] == [*ran.json[0]], "every line has every name"
        assert (silent["state"], silent["load"], silent["reserved"]) == ("unreachable", None, None)
        assert silent["not_enforced"] == ["memory: no controller"]
        assert (last["state"], last["last_seen"], last["address"]) == ("gone", "2027-01-15T08:00:00.500000Z", None)


async def test_the_table_of_nodes_and_what_is_odd(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, ODD) as (n1, n2):
        gone = host_of(replace(N3, address="10.0.0.3:7400"), last_seen=time.time() - 7200)
        await n1.etcd.txn(Txn(success=(Put(keys.host_key(N3.host_id), cluster_codec.encode_host(gone)),)))
        n2.condition = replace(n2.condition, etcd_version="3.4.23")
        ran = await cli(n1, "nodes")
        header, first, second, third = ran.out.splitlines()
        assert header.split() == [column.name.upper() for column in NODE_COLUMNS]
        assert first.split()[:4] == [N1.id, "n1", n1.node.address, "ready"]
        assert second.split()[1] == "n2\\x1b[2J", "no name acts on the terminal"
        assert third.split()[3] == "gone"
        assert " gone 2h" in third, "since when it is gone"
        assert ran.err.splitlines() == [
            "n2\\x1b[2J does not enforce: memory: no controller",
            "n2\\x1b[2J: etcd 3.4.23 is too old to be one of several voters: "
            "it takes 3.4.38 or newer, or 3.5.23 or newer",
        ]


# -- drain ----------------------------------------------------------------------------------------------------------


async def test_drain_and_undo(cli: Cli) -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N3) as (n1, n3):
        n3.condition = replace(n3.condition, running=2)
        ran = await cli(n1, "drain", "n3")
        assert (ran.code, ran.out) == (0, "n3 claims nothing more and gives back what it runs\n")
        assert ran.err.splitlines()[0].startswith("2 tasks run there still;")
        assert ran.err.splitlines()[1] == "To end it: node drain n3 --undo"
        assert is_drained(store, N3.host_id)
        ran = await cli(n1, "drain", "3333", "--undo")
        assert (ran.code, ran.out, ran.err) == (0, "n3 claims tasks again\n", "")
        assert not is_drained(store, N3.host_id)


@pytest.mark.parametrize(
    ("state", "words", "to_do"),
    [
        ("joining", "it has no lease yet (joining), and hears of it when it has one", "node nodes shows how far"),
        ("at_risk", "it gets no answer from etcd (at_risk), and hears of it when it does", "node nodes shows how far"),
    ],
)
@pytest.mark.parametrize("running", [0, 2])
async def test_no_node_is_called_drained_that_has_not_heard_of_it(
    cli: Cli, state: str, words: str, to_do: str, running: int
) -> None:
    """Whatever did not count a running task was called drained."""
    async with api_nodes(FakeStore(), N1, N3) as (n1, n3):
        n3.condition = replace(n3.condition, state=state, running=running)
        ran = await cli(n1, "drain", "n3")
        assert (ran.code, ran.out.startswith(f"n3 has been told to claim nothing more; {words}")) == (0, True)
        assert [to_do in ran.err, "To end it: node drain n3 --undo" in ran.err] == [True, True]


async def test_no_node_is_called_drained_that_has_not_said_so(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, N3) as (n1, n3):
        ran = await cli(n1, "drain", "n3")
        told = "n3 has been told to claim nothing more, and has not said yet that nothing runs there\n"
        assert (ran.code, ran.out) == (0, told)
        assert ran.err.splitlines()[0] == "node nodes shows when it is drained."
        following = asyncio.create_task(n3.drains.run())
        await n3.drains.wait_known()
        ran = await cli(n1, "drain", "n3")
        assert ran.out == "n3 is drained: it claims nothing, and nothing runs there\n"
        following.cancel()


async def test_a_node_that_does_not_answer_is_not_called_drained(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, N3) as (n1, n3):
        await n3.server.stop(None)
        ran = await cli(n1, "drain", "n3")
        told = "n3 has been told to claim nothing more; what runs there it cannot be asked (unreachable)\n"
        assert (ran.code, ran.out) == (0, told)
        assert ran.err.splitlines()[0] == (
            f"Is the way to {n3.node.address} shut? On its own machine node nodes shows how far it is."
        )
        await come(n3.etcd, replace(n3.node, address=""))
        assert (await cli(n1, "drain", "n3")).err.startswith("It serves its unix socket alone (no --listen). On its")


async def test_drain_as_json(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        ran = await cli(n1, "drain", "n1", "--json")
        assert [(view["name"], view["state"]) for view in ran.json] == [("n1", "draining")]


async def test_drain_waits_until_the_node_itself_says_that_nothing_runs(cli: Cli) -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N3) as (n1, n3):
        n3.condition = replace(n3.condition, running=1)
        following = asyncio.create_task(n3.drains.run())
        draining = asyncio.create_task(cli(n1, "drain", "n3", "--wait"))
        await wait_until(lambda: n3.drains.find(N3.host_id) is not None)
        drain = n3.drains.find(N3.host_id)
        assert drain is not None
        assert drain.let_finish
        looks = n1.etcd.calls.count("members")
        await wait_until(lambda: n1.etcd.calls.count("members") > looks + 2, what="it goes on looking")
        assert not draining.done()
        n3.condition = replace(n3.condition, running=0)
        ran = await draining
        assert (ran.code, ran.out) == (0, "n3 is drained: it claims nothing, and nothing runs there\n")
        following.cancel()


@pytest.mark.parametrize(("has_address", "looks"), [(True, drain_verb.SILENT_LOOKS), (False, 1)])
async def test_a_wait_for_a_node_that_does_not_answer_says_so_once_and_goes_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, has_address: bool, looks: int
) -> None:
    """It waited for ever without a word."""
    told: list[tuple[int, str]] = []
    store = FakeStore()
    async with api_nodes(store, N1, N3) as (n1, n3):
        monkeypatch.setattr(drain_verb, "note", lambda text: told.append((n1.etcd.calls.count("members"), text)))
        await n3.server.stop(None)
        if not has_address:
            await come(n3.etcd, replace(n3.node, address=""))
        draining = asyncio.create_task(cli(n1, "drain", "n3", "--wait"))
        await wait_until(lambda: n1.etcd.calls.count("members") > looks + 3, what="it goes on looking")
        ((look, words),) = told
        assert look == looks
        assert words.startswith("n3 does not answer (unreachable), and it alone can say that nothing runs there:")
        assert "--listen" in words or n3.node.address in words
        assert not draining.done()
        await go(n1.etcd, n3.node)
        ran = await draining
        assert (ran.code, ran.out) == (0, "n3 is gone; when it comes back it claims nothing\n")
        assert [text for _, text in told[1:]] == ["To end it: node drain n3 --undo"]


async def test_a_wait_says_nothing_of_a_short_silence(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, N3) as (n1, n3):
        await n3.server.stop(None)
        draining = asyncio.create_task(cli(n1, "drain", "n3", "--wait"))
        await wait_until(lambda: n1.etcd.calls.count("members") > drain_verb.SILENT_LOOKS // 2)
        await go(n1.etcd, n3.node)
        ran = await draining
        assert (ran.code, ran.err) == (0, "To end it: node drain n3 --undo\n")


async def test_a_node_that_goes_while_it_is_waited_for(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, N3) as (n1, n3):
        draining = asyncio.create_task(cli(n1, "drain", "n3", "--wait"))
        await wait_until(lambda: n1.etcd.calls.count("members") > 2)
        await go(n1.etcd, n3.node)
        ran = await draining
        assert (ran.code, ran.out) == (0, "n3 is gone; when it comes back it claims nothing\n")


async def test_a_drain_that_is_undone_while_it_is_waited_for(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, N3) as (n1, _):
        draining = asyncio.create_task(cli(n1, "drain", "n3", "--wait"))
        await wait_until(lambda: n1.etcd.calls.count("members") > 2)
        await n1.etcd.txn(Txn(success=(Delete(keys.drained_key(N3.host_id)),)))
        ran = await draining
        assert (ran.code, ran.out) == (1, "")
        assert "was undone meanwhile" in ran.err


async def test_ctrl_c_leaves_the_drain_and_says_so() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N3) as (n1, _):
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "node", "drain", "n3", "--wait", "--address", n1.node.address, "--insecure"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await wait_until(lambda: n1.etcd.calls.count("members") > 2, 60.0, what="it waits")
            program.send_signal(signal.SIGINT)
            out, err = await asyncio.wait_for(program.communicate(), 60.0)
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
        assert (program.returncode, out) == (130, b"")
        assert b"The drain of n3 stays" in err
        assert b"node drain n3 --undo" in err
        assert is_drained(store, N3.host_id)


async def test_drain_refuses_what_means_nothing(cli: Cli) -> None:
    twin = replace(N3, host_id=N1.host_id[:-1] + "e")
    async with api_nodes(FakeStore(), N1, twin) as (n1, _):
        assert (await cli(n1, "drain", "n1", "--undo", "--wait")).code == 2
        ambiguous = await cli(n1, "drain", "1111")
        assert ambiguous.code == 2
        assert N1.host_id in ambiguous.err
        assert twin.host_id in ambiguous.err
        missing = await cli(n1, "drain", "n7")
        assert (missing.code, missing.out) == (3, "")
        assert "node nodes lists them" in missing.err


# -- remove ---------------------------------------------------------------------------------------------------------


async def test_remove(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, N3) as (n1, n3):
        alive = await cli(n1, "remove", "n3")
        assert (alive.code, alive.out) == (1, "")
        assert "drain it (node drain n3 --wait), stop it" in alive.err
        await go(n1.etcd, n3.node)
        ran = await cli(n1, "remove", "n3")
        assert (ran.code, ran.out) == (0, f"n3 (host {N3.host_id}) is removed and may not come back\n")
        again = await cli(n1, "remove", N3.host_id, "--json")
        assert (again.code, again.json) == (0, [{"host_id": N3.host_id, "name": "n3"}])
        assert (await cli(n1, "remove", "n7")).code == 3


async def test_a_node_without_a_quorum_says_that_it_answered(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.cli.connection.PATIENCE_S", 0.2)
    async with api_nodes(FakeStore(), N1, N3) as (n1, _):
        seen = await queued(n1.store)
        n1.etcd.faults = no_quorum
        for verb in (["drain", "n3"], ["remove", "n3"], ["why", seen.task.id]):
            ran = await cli(n1, *verb)
            assert (ran.code, ran.out) == (5, "")
            assert "A node answered, and it cannot reach a majority of etcd's voters" in ran.err
            assert "No node answered" not in ran.err


# -- why ------------------------------------------------------------------------------------------------------------


async def test_why(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1, ODD) as (n1, _):
        seen = await queued(n1.store, TaskSpec("true", requirements=Requirements(cpu=64)))
        n1.condition = replace(n1.condition, state="at_risk")
        ran = await cli(n1, "why", seen.task.id)
        summary, empty, header, first, second = ran.out.splitlines()
        assert summary == f"task {seen.task.id} fits nowhere: needs 64 CPUs, the largest node lends 4"
        assert (empty, header.split()) == ("", ["NODE", "FITS", "WHY", "NOT", "NOW", "ID"])
        assert first.split(maxsplit=2)[:2] == ["n1", "no"]
        assert "needs 64 CPUs, the node lends 4; gets no answer from etcd" in first
        assert second.startswith("n2\\x1b[2J  no ")
        (told,) = (await cli(n1, "why", seen.task.id, "--json")).json
        assert [*told] == ["task", "summary", "nodes"]
        assert told["task"]["id"] == seen.task.id
        assert told["nodes"][1] == {
            "node_id": ODD.id,
            "name": ODD.name,
            "fits": False,
            "reasons": ["needs 64 CPUs, the node lends 4"],
        }


async def test_why_of_a_task_that_may_start_or_is_not_there(cli: Cli) -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        seen = await queued(n1.store)
        ran = await cli(n1, "why", seen.task.id)
        assert ran.out.splitlines()[0] == f"task {seen.task.id} may start at any moment: n1 has room for it"
        assert "may claim it at any moment" in ran.out
        assert (await cli(n1, "why", new_task().id)).code == 3
