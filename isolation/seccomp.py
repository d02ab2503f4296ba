"""The system call filter: what a task may ask of the kernel, as a program for its classic BPF machine.

An allow list. What is not named as allowed is refused, in one of two ways: a call that we know and refuse answers
EPERM, an error that programs know; a number that our table does not have, because it is newer, answers ENOSYS, which
makes a C library fall back to the older way. clone3 answers ENOSYS too: its flags lie in memory,
where a filter cannot look, and clone, to which libraries fall back, has them in a register. The list is that of the
container engines' default for a container without capabilities; where we differ is told at each group and in
docs/isolation.md, "System calls".

32-bit programs are killed at their first call (SIGSYS, "Bad system call"). Their table of calls is another one, with
entries that nobody tests; refusing each call instead would let such a program run on, unable even to exit.
x32 calls are refused by their bit.

Theory: a balanced tree over ranges of numbers, some seven comparisons deep. For what is allowed whatever its arguments
the kernel asks the filter only once per process image, at installation, and remembers (since 5.11); so what costs is
the installation, which runs the program for every number, and the calls whose arguments are looked at.

This must not: look at memory (a filter cannot), or compare more than the lower half of an argument that the kernel
takes as an int: it would ignore the upper one, and so would let through what an attacker wrote there.

seccomp(2); linux/filter.h
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Final

from isolation import _sandbox as sys_
from isolation.syscalls import numbers

_LD_W_ABS = 0x20
_JMP_JEQ = 0x15
_JMP_JGE = 0x35
_JMP_JSET = 0x45
_RET = 0x06
_JUMP_MAX = 255  # jt and jf have 8 bits

_OFFSET_NR = 0
_OFFSET_ARCH = 4
_OFFSET_ARGS = 16

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

ALLOW: Final = "allow"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Of an argument's lower half: `then` if it is one of these values, else `otherwise`."""

    argument: int
    values: tuple[int, ...]
    then: Verdict
    otherwise: Verdict


@dataclass(frozen=True, slots=True)
class AnyBit:
    """Of an argument's lower half: `then` if it has any of these bits, else `otherwise`."""

    argument: int
    mask: int
    then: Verdict
    otherwise: Verdict


#: An errno, "allow", or a look at an argument.
Verdict = int | str | OneOf | AnyBit

#: Namespace flags of clone (all of them; 0x80 is CLONE_NEWTIME, which only clone3 and unshare take, and part of the
#: exit signal in clone).
NAMESPACE_FLAGS = (
    sys_.CLONE_NEWNS
    | sys_.CLONE_NEWCGROUP
    | sys_.CLONE_NEWUTS
    | sys_.CLONE_NEWIPC
    | sys_.CLONE_NEWUSER
    | sys_.CLONE_NEWPID
    | sys_.CLONE_NEWNET
)

#: personality(2): PER_LINUX and PER_LINUX32, also with UNAME26, and the question (engines allow these);
#: ADDR_NO_RANDOMIZE, which debuggers and sanitizers set, and which weakens nobody but its own process.
_PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 0x40000)

#: ioctl requests that reach beyond the descriptor they are made on: TIOCSTI and TIOCLINUX put words into the mouth of
#: whoever uses the terminal; TIOCSETD loads line disciplines, a source of kernel bugs. Engines allow them.
#: FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR take a file out of its project, and so out of a quota (`quota.py`).
#: FS_IOC_SET_ENCRYPTION_POLICY leaves an empty scratch directory that looks new, and in which the next task can do
#: nothing, and full ones that cannot be taken apart without the key. BTRFS_IOC_SNAP_CREATE, BTRFS_IOC_SUBVOL_CREATE and
#: their second versions make what has a device number of its own, as another file system (`scratch_tree.py`).
_IOCTLS_REFUSED = (
    *(0x5412, 0x541C, 0x5423, 0x40086602, 0x401C5820, 0x800C6613),
    *(0x50009401, 0x5000940E, 0x50009417, 0x50009418),
)

#: Room without data comes in one call, at any size: a task could have the whole disk before any watch sees it, and the
#: writes of all others, etcd's too, would fail until it is ended. So nobody reserves: the answer is that of a file
#: system that cannot, and the C library's posix_fallocate(3) then writes instead, which takes its time and is held to
#: the io limit. Not even where scratch is bounded by quotas: the log files lie outside of those, and a filter does not
#: know one descriptor from another. It refuses for files in memory too, which are charged to the task anyway.
#: Allowed is what frees alone, FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE, which it cannot do without.
_FREES = 0x02 | 0x01
_FALLOCATE = OneOf(1, (_FREES,), ALLOW, errno.EOPNOTSUPP)
#: The other ways to the same: FS_IOC_RESVSP, FS_IOC_RESVSP64 and FS_IOC_ZERO_RANGE (linux/falloc.h, of any file
#: system); XFS's own ALLOCSP and FREESP, with and without 64, up to Linux 5.17.
_IOCTLS_RESERVING = (0x40305828, 0x4030582A, 0x40305839, 0x4030580A, 0x4030580B, 0x40305824, 0x40305825)

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
#: 0 (the usual), ICMP, TCP, UDP, ICMPv6, MPTCP: any other has its module loaded by the mere asking (SCTP, DCCP, L2TP).
_INET_PROTOCOLS = (0, 1, 6, 17, 58, 262)

#: Families that programs need for local and ordinary network use; routing questions (getifaddrs(3)) alone of netlink.
#: The answers are those of a kernel without the family or protocol. Engines refuse AF_ALG and AF_VSOCK alone.
_SOCKET = OneOf(
    *(0, (_AF_UNIX,), ALLOW),
    OneOf(
        *(0, (_AF_INET, _AF_INET6)),
        OneOf(2, _INET_PROTOCOLS, ALLOW, errno.EPROTONOSUPPORT),
        OneOf(
            *(0, (_AF_NETLINK,)),
            OneOf(2, (_NETLINK_ROUTE,), ALLOW, errno.EPROTONOSUPPORT),
            errno.EAFNOSUPPORT,
        ),
    ),
)

#: Nobody lowers PID 1, which has the task's user id: made to run only when nothing else wants to (SCHED_IDLE), or on
#: a processor that is always busy, it would neither pass on a stop, nor look at the deadline, nor die of a SIGKILL,
#: for many seconds. Nor does anybody set its limits. In the sandbox it is known by no other number.
_PID_1 = 1
_NOT_PID_1 = OneOf(0, (_PID_1,), errno.EPERM, ALLOW)
_PRIO_PROCESS, _PRIO_USER = 0, 2
_IOPRIO_WHO_PROCESS, _IOPRIO_WHO_USER = 1, 3


def _whose(process: int, user: int) -> Verdict:
    """Of calls that take a kind (a process, a group, all of a user) and a number of that kind."""
    of_process = OneOf(1, (_PID_1,), errno.EPERM, ALLOW)
    return OneOf(0, (user,), errno.EPERM, OneOf(0, (process,), of_process, ALLOW))


#: By their arguments.
CHECKED: dict[str, Verdict] = {
    "setpriority": _whose(_PRIO_PROCESS, _PRIO_USER),
    "ioprio_set": _whose(_IOPRIO_WHO_PROCESS, _IOPRIO_WHO_USER),
    "sched_setscheduler": _NOT_PID_1,
    "sched_setparam": _NOT_PID_1,
    "sched_setattr": _NOT_PID_1,
    "sched_setaffinity": _NOT_PID_1,
    "prlimit64": _NOT_PID_1,
    "clone": AnyBit(0, NAMESPACE_FLAGS, errno.EPERM, ALLOW),
    "clone3": errno.ENOSYS,
    "personality": OneOf(0, _PERSONALITIES, ALLOW, errno.EPERM),
    "ioctl": OneOf(1, _IOCTLS_REFUSED, errno.EPERM, OneOf(1, _IOCTLS_RESERVING, errno.EOPNOTSUPP, ALLOW)),
    "fallocate": _FALLOCATE,
    "socket": _SOCKET,
    "socketpair": OneOf(0, (_AF_UNIX,), ALLOW, errno.EOPNOTSUPP),
}

#: Whatever the arguments: reason, names. What they do is bounded by identity, mounts, namespaces and limits.
ALLOWED: tuple[tuple[str, str], ...] = (
    (
        "descriptors: reading, writing, waiting",
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup "
        "dup2 dup3 fcntl flock pipe pipe2 splice tee vmsplice sendfile copy_file_range poll ppoll select pselect6 "
        "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd "
        "signalfd4 timerfd_create timerfd_settime timerfd_gettime inotify_init inotify_init1 inotify_add_watch "
        "inotify_rm_watch",
    ),
    (
        "disk io in the background: what databases use; io_uring is refused, since it goes around this very filter",
        "io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel fsync fdatasync sync syncfs "
        "sync_file_range readahead fadvise64 truncate ftruncate cachestat",
    ),
    (
        "files by name; making device nodes takes a capability that nobody has",
        "open openat openat2 creat access faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs "
        "readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir mknod mknodat link "
        "linkat symlink symlinkat unlink unlinkat rename renameat renameat2 chmod fchmod fchmodat fchmodat2 chown "
        "fchown lchown fchownat umask utime utimes futimesat utimensat setxattr lsetxattr fsetxattr setxattrat "
        "getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat removexattr "
        "lremovexattr fremovexattr removexattrat file_getattr statmount listmount",
    ),
    (
        "memory; locked memory is bounded (isolation/privileges.py)",
        "brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 mlockall munlock munlockall "
        "remap_file_pages membarrier memfd_create memfd_secret pkey_mprotect pkey_alloc pkey_free mseal "
        "map_shadow_stack process_mrelease",
    ),
    (
        "processes and threads, and signals among them",
        "fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal "
        "rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo "
        "rt_tgsigqueueinfo sigaltstack pause restart_syscall futex futex_waitv futex_wake futex_wait "
        "futex_requeue set_robust_list get_robust_list set_tid_address rseq arch_prctl prctl sched_yield "
        "sched_getaffinity sched_getparam sched_getscheduler sched_getattr sched_get_priority_max "
        "sched_get_priority_min sched_rr_get_interval getpriority ioprio_get",
    ),
    (
        "what a process is; without capabilities it can change into nobody else",
        "getpid getppid gettid getpgid getpgrp setpgid getsid setsid getuid geteuid getresuid setuid setreuid "
        "setresuid setfsuid getgid getegid getresgid setgid setregid setresgid setfsgid getgroups setgroups "
        "capget capset getrlimit setrlimit getrusage times uname sysinfo getcpu getrandom",
    ),
    (
        "time; setting the clock takes a capability that nobody has",
        "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer alarm "
        "timer_create timer_settime timer_gettime timer_getoverrun timer_delete adjtimex clock_adjtime",
    ),
    (
        "sockets, once they are made",
        "bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt sendto "
        "recvfrom sendmsg recvmsg sendmmsg recvmmsg",
    ),
    (
        "System V and POSIX queues, in an IPC namespace of their own",
        "semget semop semtimedop semctl shmget shmat shmctl shmdt msgget msgsnd msgrcv msgctl mq_open mq_unlink "
        "mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
    ),
    (
        "restrictions that a program puts on itself",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
    (
        "made by the kernel in a process that its owner outside traces: refusing them would kill it",
        "uretprobe uprobe",
    ),
)

#: Known, and refused with EPERM.
REFUSED: tuple[tuple[str, str], ...] = (
    (
        "namespaces and mounts",
        "mount umount2 pivot_root chroot unshare setns open_tree open_tree_attr move_mount fsopen fsconfig "
        "fsmount fspick mount_setattr",
    ),
    (
        "files past their paths. Engines allow name_to_handle_at and fanotify_mark, which are of no use without "
        "the rest",
        "name_to_handle_at open_by_handle_at fanotify_init fanotify_mark",
    ),
    (
        "out of a project and its quota, as the ioctl that it is another way to",
        "file_setattr",
    ),
    (
        "into other processes. Engines allow ptrace and process_vm_* since Linux 4.8: strace and gdb work in "
        "them, not here",
        "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd",
    ),
    (
        "large surfaces of the kernel, and keys, which are no namespace's",
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl",
    ),
    (
        "where memory lies in the machine",
        "mbind get_mempolicy set_mempolicy set_mempolicy_home_node move_pages migrate_pages",
    ),
    (
        "the machine",
        "reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct syslog "
        "settimeofday clock_settime sethostname setdomainname vhangup quotactl quotactl_fd lookup_dcookie "
        "lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    ),
    (
        "old, and of x86 alone. Engines allow modify_ldt, which 16-bit programs need",
        "iopl ioperm modify_ldt uselib ustat sysfs",
    ),
    (
        "numbers that no kernel has a call for any more; an answer of their own would only make the program longer",
        "_sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall "
        "security vserver epoll_ctl_old epoll_wait_old set_thread_area get_thread_area",
    ),
)


def verdicts(machine: str) -> dict[str, Verdict]:
    """Of every call that we know on this architecture, by name."""
    table: dict[str, Verdict] = dict(CHECKED)
    table.update((name, ALLOW) for _, names in ALLOWED for name in names.split())
    table.update((name, errno.EPERM) for _, names in REFUSED for name in names.split())
    return {name: table[name] for name in numbers(machine)}


def _instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, value)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the program returns."""

    value: int


#: A position, a final answer, or a look at arguments, which is put once for all who jump to it.
_Label = int | _Answer | OneOf | AnyBit


def _ranges(machine: str) -> list[tuple[int, Verdict]]:
    """(first number, what) in rising order: each holds up to the next one's first."""
    known = numbers(machine)
    by_number = {known[name]: verdict for name, verdict in verdicts(machine).items()}
    cuts: list[tuple[int, Verdict]] = []
    for number in range(max(by_number) + 2):
        verdict = by_number.get(number, errno.ENOSYS)
        if not cuts or cuts[-1][1] != verdict:
            cuts.append((number, verdict))
    if machine == "x86_64":
        cuts.append((X32_BIT, errno.EPERM))
    return cuts


class _Assembler:
    """Instructions whose jumps are labels until all are there."""

    def __init__(self) -> None:
        self._code: list[tuple[int, _Label, _Label, int]] = []
        #: Where each look at arguments begins; behind the tree, since jumps only go forward.
        self._looks: dict[_Label, _Label] = {}

    def _reserve(self) -> int:
        self._code.append((_RET, 0, 0, 0))
        return len(self._code) - 1

    def put(self, code: int, value: int) -> None:
        """One without a jump."""
        self._code.append((code, 0, 0, value))

    def put_check(self, value: int) -> None:
        """Kills where the accumulator is anything else."""
        here = self._reserve()
        self._code[here] = (_JMP_JEQ, here + 1, _Answer(_KILL_PROCESS), value)

    def put_tree(self, ranges: list[tuple[int, Verdict]]) -> _Label:
        """What decides among these ranges of the number in the accumulator."""
        if len(ranges) == 1:
            verdict = ranges[0][1]
            return verdict if isinstance(verdict, OneOf | AnyBit) else self.put_verdict(verdict)
        middle = len(ranges) // 2
        here = self._reserve()
        low, high = self.put_tree(ranges[:middle]), self.put_tree(ranges[middle:])
        self._code[here] = (_JMP_JGE, high, low, ranges[middle][0])
        return here

    def put_verdict(self, verdict: Verdict) -> _Label:
        if isinstance(verdict, int):
            return _Answer(_ERRNO | verdict)
        if isinstance(verdict, str):
            return _Answer(_ALLOW)
        code = _JMP_JEQ if isinstance(verdict, OneOf) else _JMP_JSET
        values = verdict.values if isinstance(verdict, OneOf) else (verdict.mask,)
        first = len(self._code)
        self.put(_LD_W_ABS, _OFFSET_ARGS + 8 * verdict.argument)
        tests = [self._reserve() for _ in values]
        otherwise, then = self.put_verdict(verdict.otherwise), self.put_verdict(verdict.then)
        for test, value in zip(tests, values, strict=True):
            self._code[test] = (code, then, otherwise if test == tests[-1] else test + 1, value)
        return first

    def put_looks(self) -> None:
        """The looks at arguments that the tree leads to, each once."""
        wanted = [label for _, *labels, _ in self._code for label in labels if isinstance(label, OneOf | AnyBit)]
        self._looks = {verdict: self.put_verdict(verdict) for verdict in dict.fromkeys(wanted)}

    def assemble(self) -> bytes:
        """The program, with one return at its end for each answer. Raises ValueError where a jump is too long."""
        labels = [label for _, if_true, if_false, _ in self._code for label in (if_true, if_false)]
        answers = sorted({label.value for label in labels if isinstance(label, _Answer)})
        place: dict[_Label, _Label] = {_Answer(value): len(self._code) + i for i, value in enumerate(answers)}
        place |= self._looks

        def distance(here: int, label: _Label) -> int:
            target = place.get(label, label)
            length = target - here - 1 if isinstance(target, int) else -1
            if not 0 <= length <= _JUMP_MAX:
                raise ValueError("a jump in the filter is too long")
            return length

        jumps = (_JMP_JEQ, _JMP_JGE, _JMP_JSET)
        return b"".join(
            (
                *(
                    _instruction(code, distance(i, if_true), distance(i, if_false), value)
                    if code in jumps
                    else _instruction(code, 0, 0, value)
                    for i, (code, if_true, if_false, value) in enumerate(self._code)
                ),
                *(_instruction(_RET, 0, 0, value) for value in answers),
            )
        )


def program(machine: str = "") -> bytes:
    """The whole filter, an array of struct sock_filter; for another architecture than this one if it is named."""
    machine = machine or os.uname().machine
    code = _Assembler()
    code.put(_LD_W_ABS, _OFFSET_ARCH)
    code.put_check(_ARCHITECTURES[machine])
    code.put(_LD_W_ABS, _OFFSET_NR)
    code.put_tree(_ranges(machine))
    code.put_looks()
    return code.assemble()
