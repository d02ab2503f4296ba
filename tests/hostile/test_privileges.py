"""Nobody in a sandbox becomes more than he is: no other identity, capability, bound, priority; no device."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from isolation.spec import BindMount
from tests.hostile.harness import Hostile, Report, as_root, ordinary, throwaway

pytestmark = [
    pytest.mark.isolation,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the attacks have the numbers of x86_64"),
]

REFUSALS = frozenset({"refused EPERM", "refused EACCES"})
#: What else may be answered: memory that would be locked beyond the bound is answered as missing memory (mlock(2)).
ODD_REFUSALS = {"locked memory": "refused ENOMEM"}
#: No kernel takes it back from anybody (prctl(2)); the answer is EINVAL, and nothing has changed.
NEVER = frozenset({"new privileges again", "no filter again"})

#: Real for the root of a namespace of his own; the rest for the machine's root alone, or, where nothing is forbidden
#: in that place (an ordinary user's hard limits may be unlimited), not at all.
OF_NAMESPACE = frozenset(
    {
        *("setuid", "setresuid", "setgid", "all capabilities", "ambient capability", "capabilities to gain"),
        *("drop from the bounding set", "securebits"),
    }
)
OF_ROOT = OF_NAMESPACE | {
    *("setgroups", "setresuid to a neighbour", "chown to root", "nice", "fifo", "round robin"),
    *("deadline", "real-time io", "block device", "character device", "kernel log", "less out of memory"),
    *("clock", "adjtimex", "limit CORE", "limit NOFILE", "limit RTPRIO", "limit NICE", "su"),
}


def done(report: Report) -> dict[str, str]:
    assert report.get("done") == "yes", report
    assert not [outcome for outcome in report.said.values() if outcome.startswith("broken")], report.said
    return {name: outcome for name, outcome in report.said.items() if name != "done"}


async def test_nothing_is_gained(hostile: Hostile) -> None:
    outcomes = done(await hostile.run("privileges"))
    for name, outcome in outcomes.items():
        if name in NEVER:
            assert outcome == "refused EINVAL"
        else:
            assert outcome in REFUSALS or outcome == ODD_REFUSALS.get(name), (name, outcome)


async def test_gains_are_real_in_a_namespace_of_ones_own() -> None:
    report = await throwaway("privileges")
    assert done(report)
    assert report.succeeded >= OF_NAMESPACE


async def test_gains_are_real_for_root() -> None:
    report = await as_root("privileges")
    assert done(report)
    assert OF_ROOT - report.succeeded == frozenset()
    # Allowed, and then found to make no sense: a wrong address in one's own map would be the end of the attack.
    assert report.get("own memory map") == "refused EINVAL"


@pytest.fixture
def gift(tmp_path: Path) -> Path:
    """What root may have left in a directory that tasks share: programs with rights of their own, a device."""
    directory = tmp_path / "gift"
    directory.mkdir()
    directory.chmod(0o755)
    for name in ("id", "cat"):
        (directory / name).write_bytes(Path(f"/usr/bin/{name}").read_bytes())
    (directory / "id").chmod(0o6755)
    (directory / "cat").chmod(0o755)
    subprocess.run(["setcap", "cap_dac_override+ep", str(directory / "cat")], check=True)
    (directory / "secret").write_text("secret")
    (directory / "secret").chmod(0o600)
    # The null device: real, and harmless to whoever gets to open it.
    os.mknod(directory / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (directory / "device").chmod(0o666)
    return directory


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_mount_brings_no_rights_along(hostile: Hostile, gift: Path, *, read_only: bool) -> None:
    mount = BindMount(str(gift.resolve()), "/gift", read_only=read_only)
    report = await hostile.run("share", "/gift", mounts=(mount,))
    assert set(done(report).values()) <= REFUSALS, report.said


async def test_files_with_rights_are_real(gift: Path) -> None:
    report = await ordinary("share", "/mnt/share", share=gift)
    assert report.succeeded == frozenset(done(report)), report.said
