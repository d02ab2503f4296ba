"""Tools that others made to get out, to gain rights and to overload, run inside of a sandbox.

They come from Debian (bubblewrap, iproute2, libcap2-bin, procps, stress-ng, util-linux). Where one is missing its test
is skipped, or fails where REQUIRE has `tools`.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil

import pytest

from isolation.spec import Limits
from tests.hostile.harness import throwaway_command
from tests.isolation_live.conftest import PATH, Runner, text
from tests.support.require import require
from tests.support.wait import patient

pytestmark = pytest.mark.isolation

SEARCHED = f"{PATH}:/usr/sbin:/sbin"

#: Each does what it says for the root of a user namespace, so that its failure in a sandbox means something.
REFUSED = (
    "capsh --caps=cap_sys_admin+eip -- -c true",
    "capsh --uid=0 -- -c true",
    "capsh --secbits=1 -- -c true",
    "capsh --drop=cap_sys_admin -- -c true",
    "unshare -Urm true",
    "unshare -m true",
    "unshare -n true",
    "unshare -p -f true",
    "unshare -u true",
    "unshare -i true",
    "unshare -C true",
    "unshare -T true",
    "setpriv --reuid 0 true",
    "bwrap --ro-bind / / true",
    "bwrap --unshare-all --bind / / --dev /dev --proc /proc true",
    "nsenter -t 1 -m true",
    "nsenter -t 1 -u true",
    "mount -t tmpfs x /tmp",
    "mount --bind /usr /tmp",
    "mount -o remount,bind,rw /",
    "umount -l /proc",
    "chroot /usr /bin/true",
    "hostname x",
    "sysctl -w net.ipv4.ip_forward=1",
    "ip link set lo down",
    "chrt -i -p 0 1",
    "renice -n 19 -p 1",
    "ionice -c3 -p 1",
    "taskset -p 1 1",
    "prlimit -p 1 --stack=1000000",
)
#: Only the machine's root may: refused in both places. (The calls behind them: test_privileges.py, in the guest.)
OF_ROOT = (
    "date -s 2001-01-01",
    "dmesg",
    "sysctl -w kernel.core_pattern=x",
    "losetup -f /etc/passwd",
    "ip netns add x",
    "chrt -f 1 true",
    "ionice -c1 true",
    "su -c true",
    "mknod /tmp/d b 254 0",
    "swapon /dev/vda",
)

#: Run side by side in one sandbox for some seconds: attacks on memory, on processes, on the kernel's calls, on what
#: lies in /proc, /sys and /dev, and on what a task should not even reach.
STRESSORS = {
    "memory": "vm bigheap brk stack mmap mmapfork memfd secretmem mlock shm shm-sysv malloc oom-pipe vm-splice",
    "processes": "fork vfork clone daemon zombie session exec pthread kill sigq sigrt wait resched nice schedpolicy",
    "calls": "sysinval sysbadaddr enosys syscall x86syscall seccomp prctl personality ptrace opcode bad-altstack futex",
    "files": "procfs sysfs dev dev-shm dentry dirdeep hdd aio access chown handle inotify fanotify mknod symlink tmpfs",
    "doors": "unshare chroot bind-mount ramfs loop reboot swap io-uring key userfaultfd umount klog kvm tun quota pci",
    "sockets": "sock sockpair sockfd sockabuse netlink-proc rawsock rawpkt af-alg udp-flood msg mq sem-sysv",
    "resources": "resources revio pipeherd epoll eventfd timerfd get getrandom pty tee pidfd sockmany rlimit set",
}
STRESS_S = 2
LIMITS = Limits(cpu=1.0, memory_bytes=192 << 20, pids=100)
#: A quota is for each tenth of a second, and what runs in the kernel is charged a little late.
CPU_SLACK = 1.25
#: What each processor has charged ahead (MEMCG_CHARGE_BATCH, 64 pages) may come on top.
MEMORY_SLACK_BYTES = 4 << 20


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [tool for tool in ("bwrap", "capsh", "ip", "stress-ng", "sysctl") if not shutil.which(tool)]
    require("tools", is_there=not missing, reason=f"{', '.join(missing)}: not installed (scripts/setup.sh --witness)")


async def test_tools_get_nowhere(runner: Runner) -> None:
    for command in (*REFUSED, *OF_ROOT):
        result = await runner.sh(f"{command} </dev/null", env={"PATH": SEARCHED})
        assert result.ended.exit_code not in (None, 0), (command, result)
        assert "not found" not in result.stderr, (command, result)


async def test_tools_work_elsewhere() -> None:
    for command in REFUSED:
        done = await throwaway_command(*shlex.split(command))
        assert done.exit_code == 0, (command, done)


async def test_capsh_finds_no_capability(runner: Runner) -> None:
    said = (await runner.run("capsh", "--print", env={"PATH": SEARCHED})).stdout
    assert re.search(r"^Current: =$", said, re.MULTILINE), said
    assert re.search(r"^Bounding set =$", said, re.MULTILINE), said
    assert "no-new-privs=1" in said
    elsewhere = (await throwaway_command("capsh", "--print")).stdout
    assert "cap_sys_admin" in next(line for line in elsewhere.splitlines() if line.startswith("Bounding set"))


@pytest.mark.parametrize("group", STRESSORS)
async def test_stress_ng_breaks_nothing(runner: Runner, group: str) -> None:
    """It does what it can; its limits hold, tasks beside it run, and what ends it leaves nothing."""
    names = STRESSORS[group].split()
    argv = [
        "stress-ng",
        "--timeout",
        f"{STRESS_S}s",
        "--metrics-brief",
        "--temp-path",
        "/tmp",
        "--verbose",
        "--oomable",
    ]
    for name in names:
        argv += [f"--{name}", "1"]
    spec = runner.spec(*argv, limits=LIMITS, timeout_s=patient(30.0), grace_s=2.0)
    stress, out, err = await runner.launch(spec)
    ended = asyncio.create_task(stress.wait())
    beside = 0
    while not ended.done():
        assert (await runner.sh("test $((6 * 7)) = 42")).ended.exit_code == 0
        beside += 1
    assert beside > 1
    end = await ended
    assert end.usage.cpu_s <= LIMITS.cpu * end.usage.wall_s * CPU_SLACK
    assert end.usage.memory_peak_bytes <= (LIMITS.memory_bytes or 0) + MEMORY_SLACK_BYTES
    # Some refuse to start without rights; were it all, this would be no attack. Lines of `name operations seconds ...`.
    worked = {match[1] for match in re.finditer(r"metrc: \[\d+\] (\S+) +[1-9]\d* +\d", text(out) + text(err))}
    assert len(worked & set(names)) >= 3 or end.out_of_memory, (end, text(err))
