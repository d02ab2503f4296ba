"""Fills its own output: `fill_log.py KIND MIB`, with that many MiB. Says so at its end, and stays until it is ended."""

import ctypes
import os
import sys
import time
from collections.abc import Callable

from attempts import attempt, say

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
MIB = int(sys.argv[2]) if len(sys.argv) > 2 else 0

BLOCK = b"x" * ((1 << 20) - 1) + b"\n"
KEEP_SIZE = 1


def reserve(fd: int, start: int, count: int, mode: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(count)):
        raise OSError(ctypes.get_errno(), "fallocate")


def one_stream() -> None:
    for _ in range(MIB):
        os.write(1, BLOCK)


def both_streams() -> None:
    for _ in range(MIB // 2):
        os.write(1, BLOCK)
        os.write(2, BLOCK)


def children() -> None:
    """All at once into the same."""
    for _ in range(8):
        if os.fork() == 0:
            for _ in range(MIB // 8):
                os.write(1, BLOCK)
            os._exit(0)
    for _ in range(8):
        os.wait()


def behind_the_end() -> None:
    """Room that does not show in the length."""
    reserve(1, 0, MIB << 20, KEEP_SIZE)
    reserve(2, 0, MIB << 20, KEEP_SIZE)


def in_the_file() -> None:
    """Length without writing."""
    reserve(1, 0, MIB << 20, 0)


def anywhere() -> None:
    """By another descriptor, which does not append: also where it was punched before."""
    fd = os.open("/dev/stdout", os.O_WRONLY)
    for number in range(MIB):
        os.pwrite(fd, BLOCK, ((number * 7919) % MIB) << 20)


def far_apart() -> None:
    """A file of 4 TiB."""
    fd = os.open("/dev/stdout", os.O_WRONLY)
    step = (4 << 40) // (MIB * 256) & ~4095
    for number in range(MIB * 256):
        os.pwrite(fd, BLOCK[-4096:], number * step)


def cut_off_and_again() -> None:
    for _ in range(4):
        os.close(os.open("/dev/stdout", os.O_WRONLY | os.O_TRUNC))
        for _ in range(MIB // 4):
            os.write(1, BLOCK)


KINDS: list[Callable[[], None]] = [one_stream, both_streams, children, behind_the_end, in_the_file, anywhere, far_apart]
KINDS += [cut_off_and_again]

if KIND:
    if attempt(KIND, {kind.__name__: kind for kind in KINDS}[KIND]):
        say("whole", "yes")
    time.sleep(1000)
