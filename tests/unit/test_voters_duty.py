"""The duty "voters" and each host's part, in virtual time: deaths at every moment, two holders, lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from etcd import cluster_codec, keys
from etcd.port import Put
from node.cluster.membership import MISSING_S, PATIENCE_S, MembershipError, Role
from node.core.model import Drain, Removal
from node.core.voters import CHANGE_PAUSE_S, GRACE_S
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, Fault, applied_later
from tests.support.virtual_time import run_virtual, virtual_time
from tests.support.voting import FakeServer, Host, World


@asynccontextmanager
async def world(directory: Path, count: int, *, seed: int = 0) -> AsyncIterator[World]:
    made = World(directory, count, seed=seed)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def holder(world: World) -> Host:
    """Whose node holds the duty."""
    (kv,) = [kv for kv in world.store.read_all() if kv.key == keys.duty_key("voters")]
    return next(host for host in world.hosts if host.node_id == kv.value.decode())


def member_id(world: World, place: int) -> int:
    (found,) = [m.id for m in world.members if m.name == world.hosts[place].host_id]
    return found


# -- the way up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "voters"), [(1, "0"), (2, "0"), (3, "012"), (4, "012"), (5, "01234"), (7, "01234")])
def test_voters_by_hosts(tmp_path: Path, count: int, voters: str) -> None:
    async def run() -> None:
        async with world(tmp_path, count) as made:
            await made.wait_for_voters(voters)
            await asyncio.sleep(60)
            assert made.voters == voters
            assert len(made.started) == len(voters), "each was started once"

    run_virtual(run())


@virtual_time
async def test_every_host_knows_its_role_and_the_way_to_the_voters(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as made:
        await made.wait_for_voters("012")
        await asyncio.sleep(6)
        addresses = {f"at{n}:2" for n in range(3)}
        for host in made.hosts[:3]:
            endpoints = host.membership.endpoints()
            assert endpoints[0] == f"local{host.place}:1"
            assert set(endpoints[1:]) == addresses - {f"at{host.place}:2"}
        assert set(made.hosts[3].membership.endpoints()) == addresses
        assert [host.role for host in made.hosts] == [Role.VOTER] * 3 + [Role.CLIENT]
        assert all(host.told[-1] == (tuple(sorted(addresses)), host.role) for host in made.hosts)


@virtual_time
async def test_a_host_knows_when_it_has_lost_its_cluster(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as made:
        await made.wait_for_voters("012")
        host = made.hosts[3]
        await asyncio.sleep(PATIENCE_S)
        assert not host.membership.is_lost
        host.etcd.is_cut = True
        await asyncio.sleep(PATIENCE_S / 2)
        assert not host.membership.is_lost, "an election is no loss"
        await made.wait_for(lambda: host.membership.is_lost, 2 * PATIENCE_S)
        host.etcd.is_cut = False
        await made.wait_for(lambda: not host.membership.is_lost, PATIENCE_S)


@virtual_time
async def test_a_learner_starts_only_when_the_authoritys_key_is_there(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        made.authority_is_there = False
        await made.wait_for(lambda: len(made.members) == 2)
        await asyncio.sleep(10)
        assert len(made.started) == 1
        made.authority_is_there = True
        await made.wait_for_voters("012")


@virtual_time
async def test_a_program_that_is_missing_for_a_moment_ends_no_node(tmp_path: Path) -> None:
    """An upgrade replaces it while the node runs."""
    async with world(tmp_path, 3) as made:
        await made.wait_for_voters("0")
        made.program_is_there = False
        await made.wait_for(lambda: len(made.members) == 2)
        await asyncio.sleep(10)
        assert len(made.started) == 1
        made.program_is_there = True
        await made.wait_for_voters("012")


@virtual_time
async def test_a_host_that_does_not_start_is_given_up_for_others(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as made:
        made.hosts[1].has_authority = False
        await made.wait_for(lambda: len(made.members) == 2)
        assert (made.peer_url(1),) in {m.peer_urls for m in made.members}
        await made.wait_for_voters("023")


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away_s", [1.0, 10.0, GRACE_S - 12])
def test_a_voter_that_comes_back_within_grace_is_the_same_member(tmp_path: Path, away_s: float) -> None:
    async def run() -> None:
        async with world(tmp_path, 4) as made:
            await made.wait_for_voters("012")
            before = made.members
            await made.hosts[1].die()
            await asyncio.sleep(away_s)
            await made.hosts[1].start()
            await asyncio.sleep(60)
            assert made.members == before

    run_virtual(run())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_dead_voter_is_replaced_and_returns_as_a_client(tmp_path: Path, place: int) -> None:
    """Whichever it is: the leader and the duty's holder (host 0) too."""

    async def run() -> None:
        async with world(tmp_path, 4) as made:
            await made.wait_for_voters("012")
            assert holder(made).place == 0
            assert made.store.membership.leader_id == member_id(made, 0)
            dead = made.hosts[place]
            old_id = member_id(made, place)
            await dead.die()
            await made.wait_for_voters("".join(sorted({"0", "1", "2", "3"} - {str(place)})))
            await dead.start()
            # Its own etcd tells it, long before the list would.
            await made.wait_for(lambda: dead.membership.server is None and dead.role is Role.CLIENT, MISSING_S / 3)
            assert not dead.config.has_data
            await asyncio.sleep(60)
            assert len(made.voters) == 3
            assert old_id not in {m.id for m in made.members}

    run_virtual(run())


@virtual_time
async def test_the_only_voter_without_its_data_does_not_wait_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It remembers the voters' addresses, and they are its own."""
    async with world(tmp_path, 1) as made:
        host = made.hosts[0]
        await made.wait_for_voters("0")
        await made.wait_for(lambda: bool(host.told))
        await host.die()
        host.lose_data()
        with pytest.raises(MembershipError, match="data are missing"):
            await host.start()
        assert await host.membership.start(may_hear=True) is Role.CLIENT
        assert "If it was the only voter" in caplog.text


@virtual_time
async def test_of_three_without_a_fourth_the_dead_ones_seat_waits_for_it(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        await made.wait_for_voters("012")
        before = made.members
        await made.hosts[2].die()
        await asyncio.sleep(600)
        assert made.members == before
        await made.hosts[2].start()
        await made.wait_for(lambda: made.store.membership.is_running(member_id(made, 2)))
        assert made.members == before


@virtual_time
async def test_a_member_whose_data_are_lost_comes_back_as_a_new_one(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        await made.wait_for_voters("012")
        before = member_id(made, 2)
        await made.hosts[2].die()
        made.hosts[2].lose_data()
        await made.hosts[2].start()
        await asyncio.sleep(GRACE_S / 2)
        assert made.hosts[2].role is Role.CLIENT
        await made.wait_for(lambda: before not in {m.id for m in made.members})
        await made.wait_for_voters("012")
        assert made.started.count((made.hosts[2].host_id, before)) == 1, "never again as the old one"


@virtual_time
async def test_a_member_that_hangs_is_replaced_by_a_new_one_on_its_host(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        await made.wait_for_voters("012")
        before = member_id(made, 2)
        await asyncio.sleep(6)  # it has seen itself in the list
        hanging = made.hosts[2].membership.server
        assert isinstance(hanging, FakeServer)
        hanging.hang()
        await made.wait_for(lambda: before not in {m.id for m in made.members})
        await made.wait_for_voters("012")
        assert made.hosts[2].membership.server is not hanging


@virtual_time
async def test_an_address_that_changed_is_told_by_its_voter(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        await made.wait_for_voters("012")
        before = {m.id for m in made.members}
        await made.hosts[1].die()
        made.hosts[1].moved = 1
        await made.hosts[1].start()
        await made.wait_for(lambda: (made.peer_url(1),) in {m.peer_urls for m in made.members})
        assert {m.id for m in made.members} == before


@virtual_time
async def test_a_lone_voters_new_address_is_told(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as made:
        await made.wait_for_voters("0")
        await made.hosts[0].die()
        made.hosts[0].moved = 1
        await made.hosts[0].start()
        await made.wait_for(lambda: made.members[0].peer_urls == (made.peer_url(0),))


@virtual_time
async def test_the_learners_host_dies_before_it_started(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as made:
        made.authority_is_there = False  # nobody starts
        await made.wait_for(lambda: len(made.members) == 2)
        (learner,) = [m for m in made.members if m.is_learner]
        chosen = next(h for h in made.hosts if made.peer_url(h.place) in learner.peer_urls)
        made.authority_is_there = True
        await chosen.die()
        await made.wait_for_voters("".join(str(h.place) for h in made.hosts if h is not chosen))


@virtual_time
async def test_the_holder_dies_between_addition_and_promotion(tmp_path: Path) -> None:
    """With three voters going on to five: the next holder finds a learner and promotes it."""
    async with world(tmp_path, 5) as made:
        await made.wait_for(lambda: made.voters == "012" and len(made.members) == 3)
        made.authority_is_there = False
        await made.wait_for(lambda: len(made.members) == 4)
        first = holder(made)
        assert first.place == 0
        await first.die()
        made.authority_is_there = True
        await made.wait_for(lambda: find_holder(made) not in (None, first))
        await made.wait_for(lambda: not any(m.is_learner for m in made.members))
        assert made.voters == "0123"
        await first.start()
        await made.wait_for_voters("01234")


def find_holder(world: World) -> Host | None:
    try:
        return holder(world)
    except StopIteration:
        return None


@virtual_time
async def test_drained_and_removed_hosts_lose_their_votes(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as made:
        await made.wait_for_voters("012")
        drained, gone = made.hosts[0], made.hosts[1]
        await made.write(Put(keys.drained_key(drained.host_id), cluster_codec.encode_drain(Drain(1.0))))
        await made.wait_for_voters("123")
        await made.wait_for(lambda: drained.role is Role.CLIENT)
        await gone.die()
        await asyncio.sleep(6)
        removal = cluster_codec.encode_removal(Removal("h1", 1.0))
        await made.write(Put(keys.removed_key(gone.host_id), removal))
        await made.wait_for(lambda: gone.host_id not in {m.name for m in made.members}, GRACE_S - 10)


@virtual_time
async def test_keys_of_strangers_do_not_stop_the_duty(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        for key in (keys.all_drained().key + b"somebody", keys.all_removed().key + b"somebody"):
            await made.write(Put(key, b"?"))
        await made.wait_for_voters("012")


@virtual_time
async def test_changes_keep_their_distance(tmp_path: Path) -> None:
    """Two hosts are removed for good at the same moment: their seats go one after the other."""
    async with world(tmp_path, 5) as made:
        await made.wait_for_voters("01234")
        for host in made.hosts[3:]:
            await made.write(Put(keys.removed_key(host.host_id), cluster_codec.encode_removal(Removal("h", 1.0))))
        await made.wait_for(lambda: len(made.members) == 4)
        await asyncio.sleep(CHANGE_PAUSE_S - 1)
        assert len(made.members) == 4
        await made.wait_for_voters("012", 3)


# -- two holders, lost answers ----------------------------------------------------------------------------------------


class Always:
    """A holder that never learns that it is none."""

    async def hold(self, *, timeout_s: float = 5.0) -> bool:
        del timeout_s
        return True


@virtual_time
async def test_many_holders_at_once_do_no_harm(tmp_path: Path) -> None:
    """Each acts on its own, as one that hung between look and step."""
    async with world(tmp_path, 5) as made:
        await made.wait_for(lambda: all(hasattr(host, "duty") for host in made.hosts))
        for host in made.hosts[1:]:
            host.duty._duty = Always()
        await made.wait_for_voters("01234")
        await made.hosts[4].die()
        await made.hosts[3].die()
        await made.wait_for_voters("012")


class LosesAnswers:
    """The first changes of the members are lost: before they are applied, after it, or applied later."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults

    def __call__(self, method: str, _argument: object) -> Fault | None:
        if method in ("add_learner", "promote", "remove_member") and self.faults:
            return self.faults.pop()
        return None


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER, applied_later(2.0)])
def test_answers_are_lost(tmp_path: Path, fault: Fault) -> None:
    async def run() -> None:
        async with world(tmp_path, 4) as made:
            loses = LosesAnswers([fault] * 3)
            for host in made.hosts:
                host.etcd.faults = loses
            await made.wait_for_voters("012", 300)
            assert not loses.faults
            loses.faults = [fault]
            await made.hosts[2].die()
            await made.wait_for_voters("013", 300)
            assert not loses.faults

    run_virtual(run())


@virtual_time
async def test_nobody_is_dead_because_the_holder_slept(tmp_path: Path) -> None:
    """Its first look after a pause finds a voter away: the time in between was not observed."""
    async with world(tmp_path, 4) as made:
        await made.wait_for_voters("012")
        before = made.members
        await made.hosts[2].die()
        await asyncio.sleep(3)
        made.hosts[0].etcd.is_cut = True
        await asyncio.sleep(GRACE_S - 5)
        made.hosts[0].etcd.is_cut = False
        await asyncio.sleep(10)
        assert made.members == before
        await made.hosts[2].start()
        await asyncio.sleep(60)
        assert made.members == before


# -- everything at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_random_deaths_and_losses(tmp_path: Path, seed: int) -> None:
    """Hosts die, return, lose their data, answers are lost; then all return, and the cluster is whole."""

    async def run() -> None:
        async with world(tmp_path, 6, seed=seed) as made:
            await made.wait_for_voters("01234")
            draw = made.random

            def faults(method: str, _argument: object) -> Fault | None:
                is_change = method in ("add_learner", "promote", "remove_member", "update_member")
                return (
                    draw.choice([LOST_AFTER, LOST_BEFORE, applied_later(1.0)])
                    if is_change and draw.random() < 0.3
                    else None
                )

            for _ in range(20):
                await hurt(made)
                for host in made.hosts:
                    host.etcd.faults = faults
                await asyncio.sleep(draw.choice([0.2, 3.0, 8.0, 40.0]))
                assert made.store.membership.has_quorum, f"SEED={seed}"
                assert sum(m.is_learner for m in made.members) <= 1, f"SEED={seed}"
            for host in made.hosts:
                if not host.is_alive:
                    await host.start()
            await made.wait_for(lambda: is_whole(made), 600, what=f"five that run, SEED={seed}")
            await asyncio.sleep(60)
            assert is_whole(made), f"SEED={seed}"

    run_virtual(run())


def is_whole(made: World) -> bool:
    """Five voters, all of them running, each by its host's own account."""
    by_role = {host.host_id for host in made.hosts if host.role is Role.VOTER}
    running = {m.name for m in made.members if made.store.membership.is_running(m.id)}
    return len(made.members) == len(made.voters) == 5 and by_role == running == {m.name for m in made.members}


async def hurt(made: World) -> None:
    """Kills a host where enough voters stay, or lets one return, perhaps without its data or elsewhere."""
    draw = made.random
    host = draw.choice(made.hosts)
    if not host.is_alive:
        chance = draw.random()
        if chance < 0.25:
            host.lose_data()
        elif chance < 0.4:
            host.moved += 1
        await host.start()
        return
    running = [m for m in made.members if not m.is_learner and made.store.membership.is_running(m.id)]
    voters = [m for m in made.members if not m.is_learner]
    # A voter that is being removed, or just got its vote, must not make the difference.
    if len(running) - 1 > len(voters) // 2 + 1 or host.host_id not in {m.name for m in voters}:
        await host.die()
