"""The filter, run by a small machine of our own: every number of both architectures, and the arguments looked at."""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import socket
import struct
from pathlib import Path

import pytest

from isolation import _sandbox as sys_
from isolation import seccomp
from isolation.seccomp import ALLOW, AnyBit, OneOf, Verdict
from isolation.syscalls import numbers

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
ARM = 0x40000028
KILL = 0x80000000
THREAD = 0x3D0F00  # what the C library asks of clone


@functools.cache
def _instructions(machine: str) -> list[tuple[int, int, int, int]]:
    program = seccomp.program(machine)
    return [struct.unpack_from("HBBI", program, i) for i in range(0, len(program), 8)]


def run(number: int, *args: int, machine: str = "x86_64", architecture: int = 0) -> int | str:
    """What the kernel would do: struct seccomp_data through the classic BPF program. An errno, "allow" or "kill"."""
    words = (*args, *(0,) * (6 - len(args)))
    data = struct.pack("IIQ6Q", number & 0xFFFFFFFF, architecture or MACHINES[machine], 0, *words)
    instructions = _instructions(machine)
    accumulator = position = 0
    for _ in range(len(instructions)):
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == 0x06:
            return {0x7FFF0000: ALLOW, KILL: "kill"}.get(value, value & 0xFFFF)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        position += if_true if holds else if_false
    raise AssertionError("no verdict")


def decided(verdict: Verdict, args: tuple[int, ...]) -> int | str:
    """What the table says, worked out without the program."""
    while isinstance(verdict, OneOf | AnyBit):
        word = args[verdict.argument] & 0xFFFFFFFF
        holds = word in verdict.values if isinstance(verdict, OneOf) else bool(word & verdict.mask)
        verdict = verdict.then if holds else verdict.otherwise
    return verdict


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("args", [(0,) * 6, (1,) * 6, (2**32 - 1,) * 6, (16, 0x5412, 0, 0, 0, 0)])
def test_every_number_gets_what_the_table_says(machine: str, args: tuple[int, ...]) -> None:
    known = {number: name for name, number in numbers(machine).items()}
    table = seccomp.verdicts(machine)
    for number in range(1024):
        expected = decided(table[known[number]], args) if number in known else errno.ENOSYS
        assert run(number, *args, machine=machine) == expected, known.get(number, number)


def test_every_call_is_in_one_group() -> None:
    listed = [name for _, names in (*seccomp.ALLOWED, *seccomp.REFUSED) for name in names.split()]
    listed += [*seccomp.CHECKED]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(numbers("x86_64")) | set(numbers("aarch64"))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the headers are those of x86_64")
def test_numbers_are_those_of_the_headers() -> None:
    for header in ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"):
        if Path(header).is_file():
            there = dict(re.findall(r"#define __NR_(\w+) (\d+)", Path(header).read_text()))
            ours = numbers("x86_64")
            both = there.keys() & ours.keys()
            assert len(both) > 300
            assert {name: int(there[name]) for name in both} == {name: ours[name] for name in both}
            return
    pytest.skip("no kernel headers here")


def test_clone_makes_processes_and_threads_but_no_namespaces() -> None:
    clone = numbers("x86_64")["clone"]
    assert run(clone, int(signal.SIGCHLD)) == ALLOW
    assert run(clone, THREAD) == ALLOW
    for name in ("NEWNS", "NEWCGROUP", "NEWUTS", "NEWIPC", "NEWUSER", "NEWPID", "NEWNET"):
        flag = getattr(sys_, f"CLONE_{name}")
        assert run(clone, flag | int(signal.SIGCHLD)) == errno.EPERM, name
        assert run(clone, flag | THREAD | 1 << 40) == errno.EPERM, name
    assert run(numbers("x86_64")["clone3"]) == errno.ENOSYS


NETLINK = socket.AF_NETLINK
NO_FAMILY, NO_PROTOCOL = errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT
SOCKETS = [
    (socket.AF_UNIX, socket.SOCK_STREAM, 0, ALLOW),
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, ALLOW),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0, ALLOW),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6, ALLOW),
    (socket.AF_INET, socket.SOCK_SEQPACKET, 132, NO_PROTOCOL),  # SCTP
    (socket.AF_INET, 6, 33, NO_PROTOCOL),  # DCCP
    (socket.AF_INET, socket.SOCK_RAW, 255, NO_PROTOCOL),
    (NETLINK, socket.SOCK_RAW, 0, ALLOW),
    (NETLINK, socket.SOCK_RAW, 4, NO_PROTOCOL),  # socket diagnosis
    (NETLINK, socket.SOCK_RAW, 9, NO_PROTOCOL),  # audit
    (NETLINK, socket.SOCK_RAW, 12, NO_PROTOCOL),  # netfilter
    (socket.AF_PACKET, socket.SOCK_RAW, 0, NO_FAMILY),
    (socket.AF_VSOCK, socket.SOCK_STREAM, 0, NO_FAMILY),
    (socket.AF_ALG, socket.SOCK_SEQPACKET, 0, NO_FAMILY),
    (29, socket.SOCK_RAW, 1, NO_FAMILY),  # CAN
    (30, socket.SOCK_STREAM, 0, NO_FAMILY),  # TIPC
    (44, socket.SOCK_RAW, 0, NO_FAMILY),  # XDP
    (0, socket.SOCK_STREAM, 0, NO_FAMILY),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("high", [0, 1 << 32], ids=["plain", "upper half set"])
@pytest.mark.parametrize(("family", "kind", "protocol", "expected"), SOCKETS)
def test_sockets(machine: str, family: int, kind: int, protocol: int, *, expected: int | str, high: int) -> None:
    """The kernel takes these as ints: what stands in the upper half must change nothing."""
    call = numbers(machine)["socket"]
    assert run(call, family | high, kind | high, protocol | high, machine=machine) == expected


def test_pairs_are_of_the_unix_family() -> None:
    call = numbers("x86_64")["socketpair"]
    assert run(call, socket.AF_UNIX) == ALLOW
    assert run(call, 30) == errno.EOPNOTSUPP  # TIPC


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (0x5401, ALLOW),  # TCGETS
        (0x5413, ALLOW),  # TIOCGWINSZ
        (0x5412, errno.EPERM),  # TIOCSTI
        (0x5412 | 1 << 32, errno.EPERM),
        (0x541C, errno.EPERM),  # TIOCLINUX
        (0x5423, errno.EPERM),  # TIOCSETD
        (0x40086602, errno.EPERM),  # FS_IOC_SETFLAGS
        (0x401C5820, errno.EPERM),  # FS_IOC_FSSETXATTR
        (0x800C6613, errno.EPERM),  # FS_IOC_SET_ENCRYPTION_POLICY
        (0x50009401, errno.EPERM),  # BTRFS_IOC_SNAP_CREATE
        (0x5000940E, errno.EPERM),  # BTRFS_IOC_SUBVOL_CREATE
        (0x50009417, errno.EPERM),  # BTRFS_IOC_SNAP_CREATE_V2
        (0x50009418, errno.EPERM),  # BTRFS_IOC_SUBVOL_CREATE_V2
        (0x40049409, ALLOW),  # FICLONE: shares, and takes nothing
        (0x40305828, errno.EOPNOTSUPP),  # FS_IOC_RESVSP
        (0x4030582A | 1 << 32, errno.EOPNOTSUPP),  # FS_IOC_RESVSP64
        (0x40305839, errno.EOPNOTSUPP),  # FS_IOC_ZERO_RANGE
        (0x40305824, errno.EOPNOTSUPP),  # XFS_IOC_ALLOCSP64
        (0x4030582B, ALLOW),  # FS_IOC_UNRESVSP64: frees
    ],
)
def test_ioctls(request_: int, expected: int | str) -> None:
    assert run(numbers("x86_64")["ioctl"], 0, request_) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("high", [0, 1 << 32], ids=["plain", "upper half set"])
def test_room_is_freed_and_never_reserved(machine: str, high: int) -> None:
    """In one call a task would have the whole disk, before any watch could see it."""
    call = numbers(machine)["fallocate"]
    keep, punch, collapse, zero, insert, unshare, write_zeroes = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40, 0x80
    assert run(call, 5, punch | keep | high, 0, 1 << 40, machine=machine) == ALLOW
    for mode in (0, keep, zero, zero | keep, punch | keep | zero, collapse, insert, unshare, unshare | keep):
        assert run(call, 5, mode | high, 0, 1 << 40, machine=machine) == errno.EOPNOTSUPP, mode
    assert run(call, 5, write_zeroes | high, 0, 1 << 40, machine=machine) == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("persona", "expected"),
    [
        (0xFFFFFFFF, ALLOW),
        (0, ALLOW),
        (8, ALLOW),
        (0x40000, ALLOW),  # ADDR_NO_RANDOMIZE
        (0x400000, errno.EPERM),  # READ_IMPLIES_EXEC
        (0x100000, errno.EPERM),  # MMAP_PAGE_ZERO
        (0x6, errno.EPERM),
    ],
)
def test_personalities(persona: int, expected: int | str) -> None:
    assert run(numbers("x86_64")["personality"], persona) == expected


def test_other_architectures() -> None:
    assert run(20, architecture=I386) == "kill"
    assert run(20, architecture=ARM, machine="aarch64") == "kill"
    for number in (0, 39, 512, 1023, 0x3FFFFFFF):
        assert run(0x40000000 + number) == errno.EPERM


def test_the_tree_is_shallow_and_the_program_small() -> None:
    """A chain would cost a hundred comparisons; and the kernel translates the program anew for each sandbox."""
    for machine in MACHINES:
        assert len(seccomp.program(machine)) // 8 < 170
