"""Links and races against what the spawner does with files for a task: mounts, scratch, their removal."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from isolation.errors import SandboxFailed
from isolation.spec import BindMount
from tests.hostile.harness import Hostile
from tests.isolation_live.conftest import names_in, text
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


async def test_the_scratch_directory_itself(hostile: Hostile) -> None:
    report = await hostile.run("links", "own")
    assert report.succeeded == frozenset(), report.said
    assert report.get("above") == ""
    assert report.get("a file of the machine") == "refused EXDEV"


async def test_a_source_that_is_swapped_for_a_link(hostile: Hostile, place: Path) -> None:
    """While one task swaps it, others have it mounted: they see the directory or are refused, never where the link
    leads."""
    (place / "dir" / "apt").mkdir(parents=True)  # /etc has one too
    (place / "dir" / "apt" / "true").touch()
    swapper = await hostile.start(
        "links", "swap", "/shared", "60", says="begins", mounts=(BindMount(str(place), "/shared", read_only=False),)
    )
    counts = {"seen": 0, "refused": 0, "led away": 0}
    for _ in range(300):
        # A look that follows links is led away now and then: so that the race is one.
        counts["led away"] += (place / "dir" / "apt" / "sources.list.d").exists()
        counts[await _try_to_mount(hostile, place / "dir" / "apt")] += 1
        if min(counts.values()) > 5:
            break
    swapper.kill()
    await swapper.wait()
    assert all(counts.values()), counts


async def _try_to_mount(hostile: Hostile, source: Path) -> str:
    try:
        result = await hostile.runner.run("ls", "/data", mounts=(BindMount(str(source), "/data"),))
    except SandboxFailed as failed:
        return "refused" if failed.report.step == "mount" else f"failed at {failed.report.step}"
    return "seen" if result.stdout == "true\n" else f"another: {result.stdout}"


async def test_removal_while_others_write(hostile: Hostile, place: Path, config: SpawnerConfig) -> None:
    """A directory of a task's scratch is written to by another task, which was lent it, while it is removed: what it
    links to stays, the spawner goes on, and in the end nothing is left."""
    victim = place / "victim"
    victim.mkdir()
    (victim / "file").touch()
    mount = (BindMount(str(place), "/shared", read_only=False),)
    sandbox, out, err = await hostile.runner.launch(
        hostile.spec("links", "hammer", "/shared/socket", "3", mounts=mount)
    )
    await wait_until(lambda: "door: open" in text(out), what=f"the door is open: {text(err)}")
    assert (await hostile.run("links", "lend", "/shared/socket", mounts=mount)).exit_code == 0
    for _ in range(20):
        assert (await hostile.runner.run("true")).ended.exit_code == 0
    await sandbox.wait()
    counts = [int(line.split()[2]) for line in text(out).splitlines() if line.startswith("hammered")]
    assert counts, text(err)
    assert max(counts) > 0, "it was too late"
    await hostile.runner.run("true")
    await wait_until(lambda: names_in(config.scratch_root) == [".spare", ".trash"])
    await wait_until(lambda: names_in(config.scratch_root / ".trash") == [], what="the trash is empty")
    assert names_in(victim) == ["file"]


async def test_a_target_inside_another_mount(hostile: Hostile, place: Path, tmp_path: Path) -> None:
    """The set-up is root: it must make nothing in a directory of the machine, where the task could not."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    (closed / "link").symlink_to("/shared")
    (closed / "there").mkdir()
    for target in ("/tmp/x/made", "/tmp/x/link/made", "/tmp/x/deep/made"):
        mounts = (
            BindMount(str(place), "/shared", read_only=False),
            BindMount(str(closed), "/tmp/x", read_only=False),
            BindMount(str(place), target),
        )
        with pytest.raises(SandboxFailed) as failed:
            await hostile.runner.run("true", mounts=mounts)
        assert failed.value.report.step == "mount"
        assert names_in(closed) == ["link", "there"]
        assert names_in(place) == []
    # What is there can be mounted upon.
    inside = (BindMount(str(closed), "/tmp/x"), BindMount(str(place), "/tmp/x/there"))
    (place / "inner").touch()
    assert (await hostile.runner.run("ls", "/tmp/x/there", mounts=inside)).stdout == "inner\n"
