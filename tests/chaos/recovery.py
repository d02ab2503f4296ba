"""What an operator does when the cluster cannot mend itself, and what needs no operator: each a step of a run.

* `back up`: `node backup FILE` through any node, under load and faults: it fails aloud, or its file is whole. It is
  looked at by etcd's own program, and restored into an empty place beside.
* `fill the quota`: one key outside of pilfer's is written over and over until etcd raises NOSPACE. It must heal alone.
* `recover`: the majority of the voters is lost with its disks; `node recover --yes` on one that is left; the lost
  hosts are removed and join again.
* `restore`: every disk is lost; `node restore FILE --yes` on one machine, from a backup or from one of the rolling
  snapshots; all others join anew.

The last two may lose what happened after a moment (docs/operations.md). So the load pauses before that moment, nothing
is acknowledged after it, and all that was acknowledged before must still be there: the survivor is one that has every
revision that the leader had when the load paused, and a snapshot is one that was begun after that. (What tasks wrote
lies on lost disks, and is no part of the promise.) A new epoch is told to the checks while no etcd runs: the revisions
of the new history have the numbers of those that were lost.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from etcd.binary import find_etcd
from node.core.snapshots import KEPT
from node.core.voters import quorum, target_voters
from pilfer import Client, NotFound
from tests.chaos.asking import ask
from tests.chaos.checks import Checks
from tests.chaos.load import Load
from tests.chaos.power import Power
from tests.support.lab import Lab, LabNode
from tests.support.wait import wait_until_sync

#: Each at least once in so long, in an order that is drawn.
PERIOD_S = 600.0
KINDS = ("back up", "fill the quota", "recover", "restore", "back up")
#: Between two rolling snapshots of a node of the lab.
SNAPSHOT_INTERVAL_S = 30.0
#: Of etcd's database, the least that a node takes.
QUOTA_BYTES = 64 << 20
FLAGS = ("--snapshot-interval", f"{SNAPSHOT_INTERVAL_S:g}s", "--etcd-quota", f"{QUOTA_BYTES}")
FILL_KEY = "/chaos/fill"
_FILL_VALUE = "x" * (1 << 20)
#: Generous, for a machine that does other things beside.
HEAL_S = 180.0
COMMAND_S = 120.0
SERVE_S = 90.0


def schedule(rng: random.Random, seconds: float) -> list[tuple[float, str]]:
    """When (in seconds from the beginning) an operator does what, over a run of so long."""
    found: list[tuple[float, str]] = []
    period = 0
    while period * PERIOD_S < seconds:
        kinds = rng.sample(KINDS, len(KINDS))
        slot = PERIOD_S / len(kinds)
        found += [(period * PERIOD_S + (i + rng.uniform(0.2, 0.9)) * slot, kind) for i, kind in enumerate(kinds)]
        period += 1
    return [(at, kind) for at, kind in found if at < seconds]


class Operator:
    """Does it, and waits until the cluster is whole again. Raises AssertionError for what must never be."""

    def __init__(  # noqa: PLR0917  (each is another thing)
        self, lab: Lab, load: Load, checks: Checks, power: Power, rng: random.Random, tell: Callable[[str], None]
    ) -> None:
        self._lab = lab
        self._power = power
        self._load = load
        self._checks = checks
        self._rng = rng
        self._tell = tell
        self._desk = lab.directory / "operator"

    def do(self, kind: str) -> None:
        """One of KINDS. All but `back up` want a cluster that nothing hurts."""
        self._desk.mkdir(exist_ok=True)
        began = time.monotonic()
        self._tell(f"operator: {kind}")
        if kind == "back up":
            self.back_up()
        elif kind == "fill the quota":
            self.fill_quota()
        elif kind == "recover":
            self.recover()
        else:
            self.restore(from_snapshot=self._rng.random() < 0.5)
        self._tell(f"operator: {kind}: done after {time.monotonic() - began:.1f} s")

    # Without harm

    def back_up(self) -> None:
        """BackupIsWhole."""
        file = self._desk / "backup"
        file.unlink(missing_ok=True)
        up = self._lab.up()
        if not up:
            return
        through = self._rng.choice(up)
        # Applied by some member, so acknowledged or about to be.
        written = max((self._lab.revision(node) or 0 for node in self._lab.voters()), default=0)
        try:
            done = through.cli("backup", str(file), timeout_s=COMMAND_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"BackupIsWhole: node backup through {through.name} did not end within {COMMAND_S} s"
            ) from None
        if done.returncode:
            assert not file.exists(), f"BackupIsWhole: a backup failed and left its file: {done.stderr}"
            self._tell(f"no backup through {through.name} now: {done.stderr.strip().splitlines()[-1:]}")
            return
        self._tell(f"backup through {through.name}: {self._look_into(file, written)}")
        file.unlink()

    def check_snapshots(self) -> None:
        """SnapshotsRoll: once all is healed, every node has some, no more than it keeps, and the newest can be read."""

        def newest() -> list[Path]:
            return [files[-1] for node in self._lab.nodes.values() if (files := _snapshots(node))]

        wait_until_sync(
            lambda: len(newest()) == len(self._lab.nodes), 4 * SNAPSHOT_INTERVAL_S,
            what="SnapshotsRoll: every node has a snapshot", every_s=1.0,
        )  # fmt: skip
        for node in self._lab.nodes.values():
            # One more while the oldest is about to go.
            assert len(_snapshots(node)) <= KEPT + 1, f"SnapshotsRoll: {node.name} keeps {_snapshots(node)}"
        copy = self._desk / "newest"
        self._desk.mkdir(exist_ok=True)
        for file in newest():
            # It may be dropped at any moment: then there is a newer one.
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(file, copy)
                _status_of(copy)
        copy.unlink(missing_ok=True)

    def _look_into(self, file: Path, written: int) -> str:
        """What etcd's own program and a restore into an empty directory say of it. written: a revision that was there
        before the backup was asked for."""
        status = _status_of(file)
        assert status["revision"] >= written, (
            f"BackupIsWhole: of revision {status['revision']}, and {written} was there"
        )
        place = self._desk / "scratch"
        shutil.rmtree(place, ignore_errors=True)
        try:
            told = json.loads(self._offline(self._lab.machines[0], place, "restore", str(file), "--yes", "--json"))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return f"revision {status['revision']}, {status['totalKey']} keys, {told['tasks']} tasks"

    def fill_quota(self) -> None:
        """A full etcd heals by itself."""
        leader, filled = self._lab.get_leader(), 0
        put = self._lab.etcdctl_command(leader, "put", FILL_KEY)
        while not self._find_alarm() and filled < 3 * QUOTA_BYTES:
            # Several at a time, since asking for the alarm costs as much as a put.
            for _ in range(8):
                filled += len(_FILL_VALUE) * (not leader.run(*put, stdin=_FILL_VALUE, timeout_s=COMMAND_S).returncode)
        assert filled < 3 * QUOTA_BYTES, f"no NOSPACE after {filled} bytes"
        self._tell(f"etcd's quota is used up after {filled >> 20} MiB")
        wait_until_sync(lambda: self._find_alarm() is False, HEAL_S, what="NOSPACE heals alone", every_s=0.5)
        before = len(self._load.acknowledged)
        wait_until_sync(
            lambda: len(self._load.acknowledged) > before, HEAL_S, what="tasks are taken again", every_s=0.5
        )
        # It would be part of every snapshot from now on.
        wait_until_sync(
            lambda: not self._lab.etcdctl(self._lab.get_leader(), "del", FILL_KEY).returncode,
            HEAL_S, what="etcd takes writes", every_s=0.5,
        )  # fmt: skip

    def _find_alarm(self) -> bool | None:
        """Whether NOSPACE stands; None where nobody answers."""
        voters = self._lab.voters()
        done = self._lab.etcdctl(self._rng.choice(voters), "alarm", "list") if voters else None
        return None if done is None or done.returncode else "NOSPACE" in done.stdout

    # With loss

    def recover(self) -> None:
        """The majority of the voters is gone for good; one that is left has all that was acknowledged."""
        lab = self._lab
        self._load.pause()
        # A machine that is spared comes last: where enough others vote, it lives through this.
        voters = sorted(self._rng.sample(lab.voters(), len(lab.voters())), key=self._is_spared)
        survivor, *others = voters
        self._wait_caught_up(survivor)
        # Too few are left for a quorum; some may be left beside the survivor, and are told that they vote no more.
        least = len(voters) - quorum(len(voters)) + 1
        lost = others[: self._rng.randint(least, max(least, len(others) - self._is_spared(others[-1])))]
        self._tell(f"{_names(lost)} are lost with their disks; {survivor.name} is to be the cluster")
        old = [node.host_id for node in lost]
        for node in lost:
            node.power_off()
        for node in lost:
            lab.wipe(node)
        if self._rng.random() < 0.5:
            survivor.stop(timeout_s=COMMAND_S)
        else:
            survivor.power_off()
        self._checks.new_epoch(f"recover on {survivor.name}")
        # Unasked it only says what it would do.
        self._offline(survivor, survivor.data_dir, "recover", code=2)
        told = json.loads(self._offline(survivor, survivor.data_dir, "recover", "--yes", "--json"))
        self._tell(f"recovered: {told}")
        lab.begin(survivor)
        survivor.wait_serving(SERVE_S)
        self._bring_back(lost, old)
        self._load.resume()

    def restore(self, *, from_snapshot: bool) -> None:
        """Every disk is gone, a backup, or a rolling snapshot that somebody copied, is all that is left."""
        lab = self._lab
        self._load.pause()
        file = self._desk / "last"
        file.unlink(missing_ok=True)
        if from_snapshot:
            self._copy_snapshot(file)
        else:
            wait_until_sync(partial(self._is_backed_up, file), HEAL_S, what="a node makes a backup", every_s=1.0)
        members = list(lab.nodes.values())
        old = [node.host_id for node in members]
        self._tell(f"everything is lost but a {'snapshot' if from_snapshot else 'backup'}")
        for node in members:
            node.power_off()
        for node in members:
            lab.wipe(node)
        first, *others = self._rng.sample(members, len(members))
        self._checks.new_epoch(f"restore on {first.name}")
        lab.forget_token()
        told = json.loads(self._offline(first, first.data_dir, "restore", str(file), "--yes", "--json"))
        self._tell(f"restored on {first.name}: {told}")
        first.peers = ()
        lab.begin(first)
        first.wait_serving(SERVE_S)
        self._bring_back(others, old)
        file.unlink()
        self._load.resume()

    def _is_spared(self, node: LabNode) -> bool:
        return node.name == self._power.spared

    def _wait_caught_up(self, survivor: LabNode) -> None:
        revision = self._lab.revision(self._lab.get_leader())
        assert revision is not None, "the leader does not answer"
        wait_until_sync(
            lambda: (self._lab.revision(survivor) or 0) >= revision, what=f"{survivor.name} has revision {revision}"
        )

    def _is_backed_up(self, file: Path) -> bool:
        through = self._rng.choice(self._lab.up())
        done = through.cli("backup", str(file), timeout_s=COMMAND_S)
        if done.returncode:
            self._tell(f"no backup through {through.name}: {done.stderr.strip()}")
        return not done.returncode

    def _copy_snapshot(self, target: Path) -> None:
        """Of any node, also one that never voted: begun after the load paused. Its name tells when, in seconds."""
        paused = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ.db")
        found: list[Path] = []

        def find() -> bool:
            files = [file for node in self._lab.up() for file in _snapshots(node)]
            found[:] = sorted(file for file in files if file.name > paused)
            return bool(found)

        wait_until_sync(find, 4 * SNAPSHOT_INTERVAL_S, what="a node takes a snapshot", every_s=0.5)
        shutil.copyfile(self._rng.choice(found), target)

    def _bring_back(self, nodes: list[LabNode], old: list[str]) -> None:
        """The lost hosts are removed, and their machines join as new ones; returns when all is whole."""
        lab = self._lab
        for host_id in old:
            wait_until_sync(
                partial(self._is_removed, host_id), HEAL_S, what=f"the lost host {host_id} is removed", every_s=0.5
            )
        living = [node for node in lab.nodes.values() if node not in nodes]
        for node in nodes:
            node.peers = tuple(other.address_in_lab for other in living)
            lab.begin(node)
        wait_until_sync(self._is_whole_again, HEAL_S, what="every lost machine is a node again", every_s=0.5)
        lab.wait_voters(target_voters(len(lab.nodes)), timeout_s=HEAL_S)

    def _is_whole_again(self) -> bool:
        self._power.tick()
        return self._lab.is_whole()

    def _is_removed(self, host_id: str) -> bool:
        return bool(ask(self._lab, self._rng, partial(_remove, host_id)))

    def _offline(self, node: LabNode, data_dir: Path, verb: str, *more: str, code: int = 0) -> str:
        """What a command that works on a data directory prints, in the place of this node."""
        done = node.run(
            sys.executable, "-m", "node", verb, *more, "--data-dir", str(data_dir), timeout_s=COMMAND_S
        )  # fmt: skip
        assert done.returncode == code, f"node {verb} ended with {done.returncode}: {done.stderr}"
        return done.stdout


def _snapshots(node: LabNode) -> list[Path]:
    """Whole ones, the oldest first."""
    return sorted((node.data_dir / "snapshots").glob("*Z.db"))


def _status_of(file: Path) -> dict[str, int]:
    """What etcd's own program says of a snapshot. Raises AssertionError for what is none."""
    program = Path(find_etcd(None).path).with_name("etcdutl")
    looked = subprocess.run(
        [str(program), "snapshot", "status", str(file), "-w", "json"],
        capture_output=True, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    assert looked.returncode == 0, f"{file.name} is no snapshot: {looked.stderr}"
    status: dict[str, int] = json.loads(looked.stdout)
    return status


def _remove(host_id: str, client: Client) -> bool:
    try:
        client.remove(host_id)
    except NotFound:
        return True
    return True


def _names(nodes: list[LabNode]) -> str:
    return " and ".join(node.name for node in nodes)
