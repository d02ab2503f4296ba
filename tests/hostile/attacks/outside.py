"""What is outside of a task: other processes, control groups, the kernel's settings: `outside.py MODE ARG...`.

* `signals PID...`: signals to these pids by every call, as they would reach something if the numbers meant it here.
* `everyone`: a signal to all that may be signalled (kill -1) but ourselves; says who is left in sight.
* `priorities PID...`: priority, affinity, limits of others.
* `proc PID...`: /proc of others.
* `settings`: the kernel's files in /proc and /sys, opened for writing (nothing is written).
* `cgroups`: ways out of the group, into others, and to the release agent.
* `reading`: files of the kernel that tell what a task must not know.
"""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

from attempts import attempt, call, say, syscall

SYS_TKILL, SYS_TGKILL, SYS_RT_SIGQUEUEINFO, SYS_PIDFD_OPEN, SYS_IOPRIO_SET = 200, 234, 129, 434, 251
SYS_PROCESS_MRELEASE, SYS_MIGRATE_PAGES = 448, 256
F_SETSIG, F_SETOWN_EX, F_OWNER_PID = 10, 15, 1
PR_SET_PDEATHSIG, PR_SET_PTRACER, PR_SET_CHILD_SUBREAPER = 1, 0x59616D61, 36

Ways = dict[str, Callable[[], object]]


def each(names: Ways) -> None:
    for name, way in names.items():
        attempt(name, way)


def signals(pids: list[str]) -> None:
    """Signal 0 asks for the right to send; it does no harm where that is had. The numbers are the host's."""
    for pid in map(int, pids):
        each(
            {
                f"kill {pid}": partial(os.kill, pid, 0),
                f"kill group {pid}": partial(os.killpg, pid, 0),
                f"tkill {pid}": partial(syscall, SYS_TKILL, pid, 0),
                f"tgkill {pid}": partial(syscall, SYS_TGKILL, pid, pid, 0),
                f"pidfd_open {pid}": partial(syscall, SYS_PIDFD_OPEN, pid, 0),
                f"F_SETOWN {pid}": partial(owned, pid),
                f"setpgid {pid}": partial(os.setpgid, 0, pid),
                f"getsid {pid}": partial(os.getsid, pid),
            }
        )


def owned(pid: int) -> None:
    """SIGIO to another: the kernel asks for the right when it is sent, and for the pid when it is set."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
    fcntl.fcntl(reader, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writer, b"x")


def everyone() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    before = seen()
    attempt("kill everyone", partial(os.kill, -1, signal.SIGUSR1))
    attempt("kill PID 1", partial(os.kill, 1, signal.SIGKILL))
    attempt("stop PID 1", partial(os.kill, 1, signal.SIGSTOP))
    say("in sight", " ".join(before))


def seen() -> list[str]:
    return sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int)


def priorities(pids: list[str]) -> None:
    for pid in map(int, pids):
        each(
            {
                f"nice {pid}": partial(os.setpriority, os.PRIO_PROCESS, pid, 19),
                f"affinity {pid}": partial(os.sched_setaffinity, pid, {0}),
                f"scheduler {pid}": partial(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0)),
                f"limits {pid}": partial(resource.prlimit, pid, resource.RLIMIT_NOFILE, (10, 10)),
                f"io priority {pid}": partial(syscall, SYS_IOPRIO_SET, 1, pid, 3 << 13),
                f"pages {pid}": partial(syscall, SYS_MIGRATE_PAGES, pid, 1, None, None),
            }
        )
    each(
        {
            # Of one's own user, on the whole machine.
            "nice user": partial(os.setpriority, os.PRIO_USER, 0, 19),
            "nice root": partial(os.setpriority, os.PRIO_USER, 0, -5),
            "less nice": partial(os.nice, -5),
            "realtime": partial(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
            "io realtime": partial(syscall, SYS_IOPRIO_SET, 1, 0, (1 << 13) | 4),
        }
    )


def proc(pids: list[str]) -> None:
    for pid in pids:
        attempt(f"/proc/{pid}", partial(os.listdir, f"/proc/{pid}"))
    say("in sight", " ".join(seen()))


SETTINGS = (
    *("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmem", "/proc/mtrr", "/proc/timer_list", "/proc/acpi/wakeup"),
    *("/proc/irq/default_smp_affinity", "/proc/fs/nfsd/threads", "/proc/scsi/scsi", "/proc/bus/pci/00/00.0"),
    *(f"/proc/sys/kernel/{name}" for name in ("core_pattern", "modprobe", "hotplug", "poweroff_cmd", "panic")),
    *(f"/proc/sys/kernel/{name}" for name in ("hostname", "domainname", "randomize_va_space", "dmesg_restrict")),
    *(f"/proc/sys/kernel/{name}" for name in ("kptr_restrict", "pid_max", "threads-max", "shmmax", "msgmax", "sem")),
    *(f"/proc/sys/kernel/{name}" for name in ("core_uses_pid", "sysrq", "cad_pid", "tainted")),
    *("/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/kernel/yama/ptrace_scope"),
    *("/proc/sys/fs/binfmt_misc/register", "/proc/sys/fs/suid_dumpable", "/proc/sys/fs/file-max"),
    *("/proc/sys/fs/mqueue/msg_max", "/proc/sys/fs/protected_hardlinks", "/proc/sys/user/max_user_namespaces"),
    *("/proc/sys/vm/drop_caches", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom"),
    *("/proc/sys/vm/compact_memory", "/proc/sys/vm/mmap_min_addr", "/proc/sys/vm/swappiness"),
    *("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ping_group_range", "/proc/sys/net/core/somaxconn"),
    *("/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/tcp_rmem", "/proc/net/rpc/use-gss-proxy"),
    *("/proc/self/sessionid", "/proc/self/make-it-fail", "/proc/self/fail-nth", "/proc/self/smaps"),
    *("/sys/kernel/uevent_helper", "/sys/kernel/kexec_crash_size", "/sys/kernel/mm/ksm/run", "/sys/kernel/profiling"),
    *("/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/tracing/trace_marker", "/sys/fs/bpf", "/sys/fs/fuse"),
    *("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/security", "/sys/kernel/config", "/sys/fs/pstore"),
    *("/sys/power/state", "/sys/power/disk", "/sys/firmware/efi/efivars", "/sys/firmware/efi/vars", "/sys/firmware"),
    *(
        "/sys/devices/virtual/powercap",
        "/sys/devices/system/cpu/cpu0/online",
        "/sys/devices/system/cpu/microcode/reload",
    ),
    *(
        "/sys/module/kernel/uevent",
        "/sys/class/net/lo/mtu",
        "/sys/block",
        "/sys/bus/pci/rescan",
        "/sys/bus/usb/devices",
    ),
    *("/sys/devices/virtual/mem/null/uevent", "/sys/kernel/slab", "/sys/class/tty/console/active", "/sys/fs/ext4"),
)


def settings() -> None:
    for path in SETTINGS:
        if os.path.isdir(path):
            attempt(f"make in {path}", partial(os.mkdir, f"{path}/planted"))
        else:
            attempt(path, partial(opened_to_write, path))
    attempt("setgroups", partial(written, "/proc/self/setgroups", b"deny"))
    for name in ("uid_map", "gid_map", "projid_map"):
        attempt(name, partial(written, f"/proc/self/{name}", b"0 0 1"))
    # Everybody may open it; its namespace's root may write.
    attempt("next pid", partial(written, "/proc/sys/kernel/ns_last_pid", b"1000"))
    attempt("oom_score_adj lower", partial(written, "/proc/self/oom_score_adj", b"-1000"))
    attempt("own timer slack", partial(written, "/proc/self/timerslack_ns", b"1"))


def opened_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def written(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


CONTROLLERS = (
    "",
    "memory",
    "cpu",
    "cpu,cpuacct",
    "pids",
    "freezer",
    "blkio",
    "devices",
    "cpuset",
    "unified",
    "systemd",
)


def cgroups() -> None:
    names = ["cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.max", "pids.max", "release_agent"]
    names += ("notify_on_release", "cgroup.kill", "cgroup.freeze", "freezer.state", "cpu.max", "devices.allow")
    for controller in CONTROLLERS:
        base = f"/sys/fs/cgroup/{controller}".rstrip("/")
        attempt(f"make a group in {base}", partial(os.mkdir, f"{base}/planted"))
        for name in names:
            attempt(f"{base}/{name}", partial(opened_to_write, f"{base}/{name}"))
    os.makedirs("mnt", exist_ok=True)
    for kind, options in (("cgroup2", b""), ("cgroup", b"memory"), ("cgroup", b"pids"), ("cgroup", b"none,name=x")):
        attempt(
            f"mount {kind} {options.decode()}",
            partial(call, "mount", b"none", b"mnt", kind.encode(), ctypes.c_ulong(0), options or None),
        )
    with open("/proc/self/cgroup") as file:
        say("own group", " ".join(line.strip().split(":")[-1] for line in file))
    attempt("own namespace", partial(call, "unshare", 0x02000000))
    attempt("new group by clone", partial(syscall, 435, ctypes.c_char_p(bytes(88)), 88))


READING = (
    *("/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug"),
    *("/proc/kmsg", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/pagetypeinfo", "/proc/iomem", "/proc/ioports"),
    *("/proc/modules", "/proc/kpageflags", "/proc/kpagecount", "/proc/kpagecgroup", "/proc/latency_stats"),
    *("/proc/interrupts", "/proc/config.gz", "/proc/diskstats", "/proc/mdstat", "/proc/cmdline", "/proc/sysvipc/shm"),
    *("/proc/net/unix", "/proc/net/tcp", "/proc/net/arp", "/proc/net/route", "/proc/mounts", "/proc/self/mountinfo"),
    *("/etc/shadow", "/etc/gshadow", "/etc/ssl/private", "/root", "/var/log/auth.log", "/var/lib/private"),
    *("/sys/kernel/notes", "/sys/kernel/vmcoreinfo", "/sys/kernel/debug/sched", "/sys/firmware/acpi/tables/DSDT"),
    *("/sys/class/dmi/id/product_serial", "/sys/class/dmi/id/product_uuid", "/sys/firmware/dmi/tables/DMI"),
    *("/sys/devices/virtual/powercap/intel-rapl/intel-rapl:0/energy_uj", "/sys/kernel/slab", "/sys/kernel/btf/vmlinux"),
    *("/sys/module/kernel/sections/.text", "/sys/kernel/security/lockdown", "/sys/fs/cgroup/memory.max"),
)


def reading() -> None:
    for path in READING:
        attempt(path, partial(looked_into, path))
    attempt("kernel's log", partial(call, "klogctl", 3, ctypes.create_string_buffer(100), 100))


def looked_into(path: str) -> str:
    """A digest of the content: what a file that is all zeros or empty says is nothing."""
    if os.path.isdir(path):
        names = os.listdir(path)
        if not names:
            raise FileNotFoundError(2, "empty")
        return " ".join(names)
    with open(path, "rb") as file:
        data = file.read(1 << 20)
    if not data:
        raise FileNotFoundError(2, "empty")
    if path == "/proc/kallsyms" and all(line.startswith(b"0000000000000000 ") for line in data.splitlines()[:-1]):
        raise PermissionError(1, "addresses are hidden")
    return data[:200].decode(errors="replace")


def deaths() -> None:
    """A signal at the death of a parent reaches its own child only; who adopts our orphans is PID 1 of the sandbox."""
    attempt("death signal", partial(call, "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    attempt("a ptracer", partial(call, "prctl", PR_SET_PTRACER, ctypes.c_long(-1), 0, 0, 0))
    attempt("urgent data to others", urgent)


def urgent() -> None:
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, -1)
    theirs.send(b"x", socket.MSG_OOB)


def main() -> None:
    mode, *args = sys.argv[1:]
    with_pids = {"signals": signals, "priorities": priorities, "proc": proc}
    if mode in with_pids:
        with_pids[mode](args)
        return
    modes = {"everyone": everyone, "settings": settings, "cgroups": cgroups, "reading": reading, "deaths": deaths}
    modes[mode]()


main()
