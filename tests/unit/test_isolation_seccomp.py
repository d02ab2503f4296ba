"""The filter, run by a small machine of our own: every number, and the flags of clone."""

from __future__ import annotations

import errno
import os
import signal
import struct

import pytest

from isolation import _sandbox as sys_
from isolation import seccomp

X86_64 = 0xC000003E
I386 = 0x40000003
ALLOW = 0x7FFF0000
KILL = 0x80000000

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")


def run(program: bytes, number: int, arg0: int = 0, *, architecture: int = X86_64) -> int:
    """What the kernel would do: struct seccomp_data through the classic BPF program."""
    data = struct.pack("IIQ6Q", number, architecture, 0, arg0, 0, 0, 0, 0, 0)
    instructions = [struct.unpack_from("HBBI", program, i) for i in range(0, len(program), 8)]
    accumulator = position = 0
    for _ in range(len(instructions)):
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        position += if_true if holds else if_false
    raise AssertionError("no verdict")


def refused(number: int) -> int:
    return 0x00050000 | number


def test_every_number_gets_what_the_table_says() -> None:
    program = seccomp.program()
    table = seccomp.actions()
    for number in range(1024):
        expected = refused(table[number]) if number in table else ALLOW
        if number != sys_.SYS_clone:
            assert run(program, number) == expected, number


def test_clone_makes_processes_and_threads_but_no_namespaces() -> None:
    program = seccomp.program()
    thread = 0x3D0F00  # what the C library asks for
    assert run(program, sys_.SYS_clone, int(signal.SIGCHLD)) == ALLOW
    assert run(program, sys_.SYS_clone, thread) == ALLOW
    for name in ("NEWNS", "NEWCGROUP", "NEWUTS", "NEWIPC", "NEWUSER", "NEWPID", "NEWNET"):
        flag = getattr(sys_, f"CLONE_{name}")
        assert run(program, sys_.SYS_clone, flag | int(signal.SIGCHLD)) == refused(errno.EPERM), name
    assert run(program, sys_.SYS_clone3) == refused(errno.ENOSYS)


def test_other_architectures() -> None:
    program = seccomp.program()
    assert run(program, 20, architecture=I386) == KILL
    for number in (0, 39, 1023, 0x3FFFFFFF):
        assert run(program, 0x40000000 + number) == refused(errno.EPERM)


def test_the_tree_is_shallow() -> None:
    """A chain of comparisons would cost every call of every task some forty steps."""
    assert len(seccomp.program()) // 8 < 255
