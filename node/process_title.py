"""Takes a secret out of what everybody can read about this process: its arguments and its environment.

`/proc/PID/cmdline` is open to every user of the machine for as long as the process lives; a token that was given with
`--token` would stand there in `ps`. `/proc/PID/environ` is open to the same user, and so to tasks where the node is
not root. Both show memory of the process itself, where the kernel put the texts at exec; overwriting them there is
what programs with passwords in their arguments do (proc_pid_cmdline(5)). The shell's history and whoever looked
before are out of reach, which is why a file is the better way.

Must not do: raise where it cannot; a node must start all the same, and say so.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_STAT: Final = Path("/proc/self/stat")
_MEMORY: Final = Path("/proc/self/mem")
#: Fields 48 to 51 of proc_pid_stat(5) (arg_start, arg_end, env_start, env_end), counted from the third, which is the
#: first after the command's name.
_FIRST_FIELD: Final = 48 - 3
_FILLER: Final = b"*"


#: Shorter ones are no secrets, and might be a part of something that is needed: C libraries, and programs that are
#: started, read the same memory as their environment.
SECRET_MIN_BYTES: Final = 16


def wipe(secret: str) -> bool:
    """Overwrites every occurrence of `secret` in this process's arguments and environment, as far as they are those
    it was started with, and longer than SECRET_MIN_BYTES. False: it may still be seen, and that was logged. Python's
    own sys.argv and os.environ are left alone."""
    wanted = os.fsencode(secret)
    if len(wanted) < SECRET_MIN_BYTES:
        return True
    try:
        regions = _regions()
        descriptor = os.open(_MEMORY, os.O_RDWR | os.O_CLOEXEC)
    except (OSError, ValueError, IndexError) as error:
        _warn(error)
        return False
    try:
        for start, end in regions:
            _wipe_region(descriptor, start, end, wanted)
    except OSError as error:
        _warn(error)
        return False
    finally:
        os.close(descriptor)
    return True


def _regions() -> tuple[tuple[int, int], tuple[int, int]]:
    # The command's name may hold spaces and parentheses; the last parenthesis ends it.
    fields = _STAT.read_bytes().rpartition(b")")[2].split()
    arguments, arguments_end, environment, environment_end = map(int, fields[_FIRST_FIELD : _FIRST_FIELD + 4])
    if not (0 < arguments <= arguments_end and 0 < environment <= environment_end):
        # 0: the kernel does not tell (proc_pid_stat(5), the fields marked PT).
        raise ValueError("the kernel does not tell where they are")
    return (arguments, arguments_end), (environment, environment_end)


def _wipe_region(memory: int, start: int, end: int, wanted: bytes) -> None:
    content = os.pread(memory, end - start, start)
    place = content.find(wanted)
    while place >= 0:
        os.pwrite(memory, _FILLER * len(wanted), start + place)
        place = content.find(wanted, place + len(wanted))


def _warn(error: Exception) -> None:
    log.warning(
        "the join token cannot be taken out of this process's arguments (%s): other users of this machine may see it"
        " in ps until it expires. Give it with --token-file instead",
        error,
    )
