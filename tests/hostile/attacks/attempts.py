"""How an attack tells what came of each attempt: one line each, `name: outcome detail`.

Outcomes: `refused ERRNO` (the kernel said no), `killed SIGNAL` (it died of it), `SUCCEEDED detail`. The harness reads
them (`tests/hostile/harness.py`). Output is flushed line by line, since the next attempt may be the last.
"""

import ctypes
import errno
import os
import signal
from collections.abc import Callable

import guard  # noqa: F401  (it refuses to go on where no attack may run)

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def say(name: str, outcome: str) -> None:
    """The line that the harness reads. One write, so that lines of several processes do not mix."""
    os.write(1, f"{name}: {' '.join(outcome.split())}\n".encode(errors="replace"))


def attempt(name: str, try_it: Callable[[], object]) -> bool:
    """Tries in this process and says what came of it. True where it succeeded."""
    try:
        found = try_it()
    except OSError as error:
        say(name, "refused " + errno.errorcode.get(error.errno or 0, str(error)))
        return False
    except MemoryError:
        say(name, "refused ENOMEM")
        return False
    say(name, f"SUCCEEDED {found if found is not None else ''}")
    return True


def attempt_aside(name: str, try_it: Callable[[], object]) -> None:
    """The same in a child, for what may kill or spoil the process that tries it."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt(name, try_it)
        except BaseException as error:  # the child must end here, whatever it was
            say(name, f"broken {type(error).__name__} {error}")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        say(name, "killed " + signal.Signals(os.WTERMSIG(status)).name)


def call(name: str, *args: object) -> int:
    """A function of the C library that answers -1 with an errno. Raises OSError; gives what it gave."""
    ctypes.set_errno(0)
    return _checked(getattr(libc, name)(*args))


def syscall(number: int, *args: object) -> int:
    """A system call by number. Raises OSError."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(libc.syscall(ctypes.c_long(number), *words))


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
