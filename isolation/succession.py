"""One spawner per data directory at a time: a lock that a spawner holds for its life.

A node that was killed leaves its spawner for the moment that this needs to end everything; a spawner that is stopped
stays for good, and with it tasks that run on until their own second fence. The next spawner must not begin before:
once it is ready, its node takes the last run for over and gives the run's tasks to others.

    free                        taken
    held                        by the last one, which is on its way out: waited for
    held still                  it is stopped or hangs: killed. Its sandboxes die with it (PDEATHSIG and the report
                                socket), and what is frozen is for `leftovers.py`
    held though it was killed   it hangs in the kernel and will never take another step: gone on without the lock

It is flock(2) on a file in the data directory: given back by the kernel, however the holder dies. Sandboxes do not
inherit it: every descriptor but theirs is closed before their PID 1 waits for anything. Only a process that has this
very file open is ever killed, since a pid that was written down may be another's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from isolation.errors import HostLacks

#: For a spawner whose node is gone to end everything and itself, which it does within a second.
LEAVE_PATIENCE_S = 1.5
#: From SIGKILL to the end of a process that is not stuck in the kernel.
DEATH_PATIENCE_S = 2.0
_LOOK_S = 0.005


def succeed(path: Path, log: Callable[..., None]) -> int:
    """A descriptor that holds the lock until it is closed. Raises HostLacks where another process holds it that is not
    this directory's spawner, and OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _wait_locked(fd, LEAVE_PATIENCE_S):
            _kill_holder(fd, path, log)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wait_locked(fd: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_S)  # the kernel tells of a lock that is free only to who waits for it without an end


def _kill_holder(fd: int, path: Path, log: Callable[..., None]) -> None:
    """Returns when the last spawner will never take another step."""
    written = os.pread(fd, 32, 0).strip()
    pid = int(written) if written.isdigit() else 0
    if not pid or not _has_open(pid, fd):
        if _wait_locked(fd, DEATH_PATIENCE_S):  # it went just now
            return
        raise HostLacks(
            f"{path} is held by a process that is not the last spawner of this directory (it says "
            f"{written.decode('ascii', 'replace') or 'nothing'!r}): find it with fuser {path}, and end it"
        )
    log("the last spawner is still there: killing it", pid=pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not _wait_locked(fd, DEATH_PATIENCE_S):
        log("the last spawner was killed, and the kernel does not let it go", pid=pid)


def _has_open(pid: int, fd: int) -> bool:
    """Whether that process has the file open that we have open."""
    ours = os.fstat(fd)
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  (names are what is needed)
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), ours):  # noqa: PTH116  (a link of the kernel's)
                    return True
    return False
