"""What of the kernel's own file systems a task can read and write: every file is looked at, from inside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.isolation_live.conftest import Runner

pytestmark = pytest.mark.isolation

#: Of /proc, besides the process's own: what tells of the machine, and nothing of what others do on it. `sys` lists
#: settings; `bus`, `irq`, `fs` and the like hardware and file systems.
HARMLESS_IN_PROC = re.compile(
    "/proc/("
    "buddyinfo|cgroups|cmdline|config.gz|consoles|cpuinfo|crypto|devices|diskstats|dma|execdomains|fb|filesystems|"
    "iomem|ioports|kallsyms|key-users|loadavg|locks|mdstat|meminfo|misc|modules|mtrr|partitions|pressure|schedstat|"
    "softirqs|stat|swaps|uptime|version|version_signature|vmstat|zoneinfo|bootconfig|"
    "(acpi|asound|bus|driver|dynamic_debug|fs|irq|scsi|sys|sysvipc|tty)/.*|pressure/(cpu|io|irq|memory)"
    ")"
)
#: They can be opened for writing by everybody, and do no harm: the first refuses whoever has no capability, the others
#: only ask to be told of pressure.
_PRESSURE = ("cpu", "io", "irq", "memory")
WRITABLE_IN_PROC = {"/proc/sys/kernel/ns_last_pid", *(f"/proc/pressure/{name}" for name in _PRESSURE)}

HARMLESS_IN_SYS = re.compile("/sys/(block|bus|class|dev|devices|fs|hypervisor|kernel|module|power)/.*")
HIDDEN_IN_SYS = re.compile(
    "/sys/(firmware|kernel/(security|debug|tracing|config)|fs/(cgroup|bpf|pstore|fuse/connections|selinux|smackfs)|"
    "devices/virtual/powercap|class/net|devices/virtual/net)/.*"
)

#: Each file below a directory that can be opened: a letter for how, and its path. Reading may still be refused.
LIST = """
import os, sys
top, = sys.argv[1:]
for directory, directories, names in os.walk(top):
    if directory == "/proc":
        directories[:] = [d for d in directories if not d.isdigit()]
    for name in names:
        path = os.path.join(directory, name)
        if os.path.islink(path):
            continue
        for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY)):
            try:
                fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:
                continue
            try:
                if letter == "w" or os.read(fd, 1):
                    print(letter, path)
            except OSError:
                pass
            os.close(fd)
"""


async def _openable(runner: Runner, top: str) -> tuple[set[str], set[str]]:
    """Paths with content that can be read, and paths that can be opened to be written."""
    result = await runner.run("/usr/bin/python3", "-c", LIST, top)
    assert result.ended.exit_code == 0, result.stderr
    lines = [line.split(" ", 1) for line in result.stdout.splitlines()]
    readable, writable = ({path for letter, path in lines if letter == which} for which in "rw")
    assert len(readable) > 50
    return readable, writable


async def test_of_proc_only_what_is_harmless(runner: Runner) -> None:
    readable, writable = await _openable(runner, "/proc")
    assert {path for path in readable if not HARMLESS_IN_PROC.fullmatch(path)} == set()
    null = {path for path in writable if Path(path).name in ("keys", "interrupts")}  # the null device
    assert writable - null <= WRITABLE_IN_PROC


@pytest.mark.parametrize("name", ["keys", "interrupts"])
async def test_what_others_do_is_covered(runner: Runner, name: str) -> None:
    assert Path("/proc", name).read_text()  # so that the emptiness inside means something
    result = await runner.sh(f"cat /proc/{name} && echo x >/proc/{name}; umount /proc/{name}; cat /proc/{name}")
    assert result.stdout == ""


async def test_settings_of_the_kernel_cannot_be_written(runner: Runner) -> None:
    script = (
        "for f in kernel/core_pattern kernel/ns_last_pid kernel/hostname vm/drop_caches net/ipv4/ip_forward; do "
        "echo 1 >/proc/sys/$f && echo wrote; done; echo b >/proc/sysrq-trigger && echo wrote"
    )
    result = await runner.sh(script)
    assert "wrote" not in result.stdout
    assert result.stderr


async def test_of_sys_nothing_is_written_and_hidden_is_what_is_not_about_hardware(runner: Runner) -> None:
    # Thousands of files, so asked by access(2): permissions and mounts are all that decides here.
    listed = await runner.sh("find /sys -type f -readable; echo; find /sys -type f -writable")
    readable, writable = (part.splitlines() for part in listed.stdout.split("\n\n"))
    assert len(readable) > 500
    assert [path for path in readable if not HARMLESS_IN_SYS.fullmatch(path)] == []
    assert [path for path in readable if HIDDEN_IN_SYS.fullmatch(path)] == []
    assert writable == []


@pytest.mark.usefixtures("root")
async def test_the_hosts_network_interfaces_are_not_in_sys(runner: Runner) -> None:
    assert "lo" in [path.name for path in Path("/sys/class/net").iterdir()]
    result = await runner.sh("find /sys/class/net /sys/devices -path '*/net/*'")
    assert result.stdout == ""


async def test_what_programs_adapt_themselves_to_is_there(runner: Runner) -> None:
    script = "nproc && head -1 /proc/meminfo && test -d /sys/devices/system/cpu && cat /proc/sys/vm/overcommit_memory"
    result = await runner.sh(script)
    assert result.ended.exit_code == 0, result.stderr
    assert "MemTotal" in result.stdout


KEYRINGS = """
from isolation import _sandbox, kernel, privileges
def session():
    try:
        return _sandbox.syscall(_sandbox.SYS_keyctl, 0, -3, 0)  # KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING
    except OSError as error:
        return error.errno
before = session()
privileges.drop_for_good()
print(before, session())
"""


@pytest.mark.usefixtures("root")
def test_the_session_keyring_of_whoever_started_the_node_is_left_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEYRINGS], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    before, after = done.stdout.split()
    if before == after and int(before) < 200:
        pytest.skip(f"keys are not to be had here (errno {before})")
    assert before != after
