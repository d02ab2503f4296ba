"""The system call filter, as a program for the kernel's classic BPF machine.

A deny list: what has no business in a task, and what opens much of the kernel. Refused calls answer EPERM, so that
programs see an error they know; clone3 answers ENOSYS, since its flags lie in memory where a filter cannot look, and
the C library then falls back to clone, whose flags can be checked. 32-bit and x32 calls are refused as a whole: their
numbers mean other things.

A balanced tree over ranges of numbers instead of a chain of comparisons: 6 comparisons per call instead of 40.

seccomp(2); linux/filter.h
"""

from __future__ import annotations

import errno
import os
import struct

from isolation import _sandbox as sys_

_LD_W_ABS = 0x20
_JMP_JEQ = 0x15
_JMP_JGE = 0x35
_JMP_JSET = 0x45
_RET = 0x06

_OFFSET_NR = 0
_OFFSET_ARCH = 4
_OFFSET_ARG0_LOW = 16

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

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

#: By what they open up. Names that an architecture lacks are left out.
DENIED = (
    # namespaces and mounts
    *("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "move_mount", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "mount_setattr", "name_to_handle_at", "open_by_handle_at", "quotactl", "fanotify_init"),
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd"),
    # large surfaces of the kernel
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("add_key", "request_key", "keyctl"),
    # the machine
    *("reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff"),
    *("acct", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname"),
    *("iopl", "ioperm", "modify_ldt", "vhangup", "nfsservctl", "lookup_dcookie", "uselib", "ustat", "sysfs", "_sysctl"),
    *("create_module", "get_kernel_syms", "query_module", "move_pages", "migrate_pages", "mbind", "set_mempolicy"),
)


def _instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, value)


def _return(value: int) -> bytes:
    return _instruction(_RET, 0, 0, value)


def actions() -> dict[int, int]:
    """System call number -> errno that it answers."""
    table = {number: errno.EPERM for name in DENIED if (number := getattr(sys_, f"SYS_{name}", None)) is not None}
    table[sys_.SYS_clone3] = errno.ENOSYS
    return table


def _ranges() -> list[tuple[int, str | int]]:
    """(first number, what) in rising order: each holds up to the next one's first."""
    cuts: list[tuple[int, str | int]] = [(0, "allow")]
    special: dict[int, str | int] = {**actions(), sys_.SYS_clone: "clone"}
    for number in sorted(special):
        if cuts[-1][0] == number:
            cuts.pop()
        cuts.append((number, special[number]))
        cuts.append((number + 1, "allow"))
    if os.uname().machine == "x86_64":
        cuts.append((_X32_BIT, errno.EPERM))
    merged: list[tuple[int, str | int]] = []
    for cut in cuts:
        if not merged or merged[-1][1] != cut[1]:
            merged.append(cut)
    return merged


def _leaf(what: str | int) -> list[bytes]:
    if what == "allow":
        return [_return(_ALLOW)]
    if what == "clone":
        return [
            _instruction(_LD_W_ABS, 0, 0, _OFFSET_ARG0_LOW),
            _instruction(_JMP_JSET, 0, 1, NAMESPACE_FLAGS),
            _return(_ERRNO | errno.EPERM),
            _return(_ALLOW),
        ]
    return [_return(_ERRNO | int(what))]


def _tree(ranges: list[tuple[int, str | int]]) -> list[bytes]:
    if len(ranges) == 1:
        return _leaf(ranges[0][1])
    middle = len(ranges) // 2
    low, high = _tree(ranges[:middle]), _tree(ranges[middle:])
    if len(low) > 255:
        raise ValueError("a jump in the filter is too long")  # jt and jf have 8 bits
    return [_instruction(_JMP_JGE, len(low), 0, ranges[middle][0]), *low, *high]


def program() -> bytes:
    """The whole filter: an array of struct sock_filter."""
    architecture = _ARCHITECTURES[os.uname().machine]
    return b"".join(
        [
            _instruction(_LD_W_ABS, 0, 0, _OFFSET_ARCH),
            _instruction(_JMP_JEQ, 1, 0, architecture),
            _return(_KILL_PROCESS),
            _instruction(_LD_W_ABS, 0, 0, _OFFSET_NR),
            *_tree(_ranges()),
        ]
    )
