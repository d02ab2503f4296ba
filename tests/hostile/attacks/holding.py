"""For attacks that hold more and more of something until they have enough, are refused, or are killed.

`SCRIPT KIND MIB`: the kind says how; it calls `took` for all that it got, which ends it when that is MIB. What comes
out is one line: `KIND: SUCCEEDED 64 MiB` or `KIND: refused ENOMEM after 12 MiB`; none where it was killed.
"""

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Callable, Mapping

import attempts

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
WANTED = int(sys.argv[2]) << 20 if len(sys.argv) > 2 else 0

PAGE = 4096
BLOCK = b"x" * (1 << 20)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]

MAP_PRIVATE_ANONYMOUS, MAP_NORESERVE = 0x22, 0x4000

#: What is held must stay referred to.
held: list[object] = []


class _Total:
    taken = 0


class _EnoughError(Exception):
    """Everything that was wanted is held."""


def took(size: int) -> None:
    """Counts what was got; does not return when it is enough."""
    _Total.taken += size
    if _Total.taken >= WANTED:
        raise _EnoughError


def killed(what: str) -> None:
    """Something of this was killed, and this process was not: version 1 of control groups kills one at a time."""
    attempts.say(KIND, f"killed {what}")
    os._exit(3)


def more_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def anonymous(size: int) -> int:
    """Address of a mapping that nothing has been written to."""
    address = libc.mmap(None, size, 3, MAP_PRIVATE_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(errno.ENOMEM, "mmap")
    return int(address)


def hold(kinds: Mapping[str, Callable[[], object]]) -> None:
    """Runs what the arguments name, says what came of it, and ends at once: nothing is tidied up."""
    try:
        kinds[KIND]()
    except _EnoughError:
        pass
    except OSError as error:
        attempts.say(KIND, f"refused {errno.errorcode.get(error.errno or 0)} after {_Total.taken >> 20} MiB")
        os._exit(2)
    except MemoryError:
        attempts.say(KIND, f"refused ENOMEM after {_Total.taken >> 20} MiB")
        os._exit(2)
    attempts.say(KIND, f"SUCCEEDED {_Total.taken >> 20} MiB")
    os._exit(0)
