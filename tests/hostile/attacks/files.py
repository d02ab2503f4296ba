"""Files that are not the task's own: `files.py MODE ARG...`.

* `change PATH...`: every way to change a file or directory that is there. Each is done so that nothing is lost where
  it succeeds (opened, not written; renamed to itself; truncated to the size that it has).
* `walk ROOT [SKIP...]`: everything below ROOT that may be written, and every socket, device and FIFO.
* `exe PROGRAM`: overwrite a program through /proc/PID/exe while and after it runs (CVE-2019-5736).
* `neighbours`: what /proc shows of PID 1, and what leads out of the view from there (CVE-2024-21626).
* `stdio`: what can be done to the files behind descriptors 0 to 2.
* `devices`: those that a task has no business with.
"""

import ctypes
import fcntl
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from attempts import attempt, call, say

FS_IOC_SETFLAGS = 0x40086602
FIFREEZE, FIBMAP = 0xC0045877, 0x1
APPEND_ONLY = 0x20
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
F_SETLEASE, F_WRLCK = 1024, 1
FALLOC_KEEP_SIZE = 1


Ways = dict[str, Callable[[], object]]


def opens(path: str, flags: int) -> Callable[[], None]:
    def try_it() -> None:
        os.close(os.open(path, flags))

    return try_it


def change(paths: list[str]) -> None:
    for path in paths:
        if not os.path.lexists(path):
            say(path, "absent")
            continue
        found = os.stat(path)
        ways = _in_directory(path) if stat.S_ISDIR(found.st_mode) else _to_file(path, found)
        ways |= {
            "rename": partial(os.rename, path, path),
            "chmod": partial(os.chmod, path, stat.S_IMODE(found.st_mode)),
            "chown": partial(os.chown, path, found.st_uid, found.st_gid),
            "times": partial(os.utime, path, ns=(found.st_atime_ns, found.st_mtime_ns)),
            "attribute": partial(os.setxattr, path, "user.pilfer", b"x"),
        }
        for name, way in ways.items():
            attempt(f"{name} {path}", way)


def _in_directory(path: str) -> Ways:
    own = os.path.join(path, "planted")
    return {
        "create": opens(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "mkdir": partial(os.mkdir, own + "-dir"),
        "symlink": partial(os.symlink, "/etc/passwd", own + "-link"),
    }


def _to_file(path: str, found: os.stat_result) -> Ways:
    return {
        "write": opens(path, os.O_WRONLY | os.O_NONBLOCK),
        "append": opens(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK),
        "truncate": partial(os.truncate, path, found.st_size),
        "link": partial(os.link, path, f"linked-{found.st_ino}"),
    }


def walk(root: str, skipped: list[str]) -> None:
    """Goes by access(2), which answers for the mount too and changes nothing."""
    writable, sockets, devices, fifos = [], [], [], []
    count = 0
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if os.path.join(directory, name) not in skipped]
        for path in [directory, *(os.path.join(directory, name) for name in files)]:
            count += 1
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(mode):
                sockets.append(path)
            elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                devices.append(path)
            elif stat.S_ISFIFO(mode):
                fifos.append(path)
            if not stat.S_ISLNK(mode) and os.access(path, os.W_OK):
                writable.append(path)
    say("looked at", str(count))
    for name, found in (("writable", writable), ("sockets", sockets), ("devices", devices), ("fifos", fifos)):
        say(name, " ".join(sorted(found)))


def exe(program: str) -> None:
    """While it runs the kernel says ETXTBSY; a descriptor kept until it has ended may be opened anew for writing."""
    with subprocess.Popen([program, "-S", "-c", "import time; time.sleep(60)"]) as running:
        link = f"/proc/{running.pid}/exe"
        attempt("while it runs", opens(link, os.O_WRONLY))
        kept = os.open(link, os.O_PATH)
        running.kill()
    attempt("when it has ended", opens(f"/proc/self/fd/{kept}", os.O_WRONLY))


def neighbours() -> None:
    for name in ("exe", "cwd", "root"):
        attempt(f"readlink /proc/1/{name}", partial(os.readlink, f"/proc/1/{name}"))
    for name in ("cwd", "root", "fd", "map_files"):
        attempt(f"list /proc/1/{name}", partial(_listed, f"/proc/1/{name}"))
    for name in ("exe", "environ", "mem", "maps", "auxv", "syscall", "stack", "pagemap", "io", "personality"):
        attempt(f"read /proc/1/{name}", partial(_read, f"/proc/1/{name}"))
    for name in ("mem", "exe", "oom_score_adj", "clear_refs", "coredump_filter", "autogroup"):
        attempt(f"write /proc/1/{name}", opens(f"/proc/1/{name}", os.O_WRONLY))
    attempt("write /proc/1/timerslack_ns", partial(_write, "/proc/1/timerslack_ns", b"50000"))  # opened by anybody
    for fd in range(3, 40):
        attempt(f"fd {fd}", partial(os.readlink, f"/proc/self/fd/{fd}"))
    top = os.stat("/")
    for name in ("cwd", "root"):
        above = os.stat(f"/proc/self/{name}/" + "../" * 40)
        escaped = (above.st_dev, above.st_ino) != (top.st_dev, top.st_ino)
        say(f"above /proc/self/{name}", "SUCCEEDED" if escaped else "refused")


def _listed(path: str) -> str:
    return f"{len(os.listdir(path))} entries"


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return f"{len(os.read(fd, 100))} bytes"
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def stdio() -> None:
    for fd, name in ((1, "stdout"), (2, "stderr")):
        again = f"/proc/self/fd/{fd}"
        ways: Ways = {
            "read": partial(os.read, fd, 1),
            "open to read": opens(again, os.O_RDONLY),
            "open for both": opens(again, os.O_RDWR),
            "chmod": partial(os.fchmod, fd, 0o777),
            "chown": partial(os.fchown, fd, os.getuid(), os.getgid()),
            "lease": partial(fcntl.fcntl, fd, F_SETLEASE, F_WRLCK),
            "flags": partial(fcntl.ioctl, fd, FS_IOC_SETFLAGS, struct.pack("l", APPEND_ONLY)),
            "freeze": partial(fcntl.ioctl, fd, FIFREEZE, 0),
            "map blocks": partial(fcntl.ioctl, fd, FIBMAP, struct.pack("i", 0)),
            "link by path": partial(
                call, "linkat", AT_FDCWD, again.encode(), AT_FDCWD, name.encode() + b"-1", AT_SYMLINK_FOLLOW
            ),
            "link by descriptor": partial(call, "linkat", fd, b"", AT_FDCWD, name.encode() + b"-2", AT_EMPTY_PATH),
            "directory": partial(os.listdir, again + "/.."),
            # What a task may do to its own output, and the next one must not find.
            "attribute": partial(os.setxattr, fd, "user.message", b"x"),
            "space": partial(call, "fallocate", fd, FALLOC_KEEP_SIZE, ctypes.c_long(1 << 20), ctypes.c_long(4 << 20)),
        }
        for what, way in ways.items():
            attempt(f"{name} {what}", way)


def left_on_stdio() -> None:
    """What an earlier user of the same file left: names of attributes, space."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        say(f"{name} attributes", " ".join(os.listxattr(fd)))
        say(f"{name} blocks", str(os.fstat(fd).st_blocks))


DEVICES = (
    *("kmsg", "mem", "kmem", "port", "vda", "vdb", "sda", "nvme0", "nvme0n1", "loop-control", "loop0", "ram0", "zram0"),
    *("fuse", "cuse", "kvm", "vhost-net", "vhost-vsock", "net/tun", "ppp", "vsock", "mapper/control", "btrfs-control"),
    *("autofs", "userfaultfd", "snapshot", "uinput", "uhid", "input", "dri", "fb0", "hpet", "rtc0", "rtc", "watchdog"),
    *("cpu_dma_latency", "cpu/0/msr", "console", "tty0", "tty1", "ttyS0", "vcs", "vcsa", "udmabuf", "dma_heap", "sgx"),
    *(
        "hwrng",
        "tpm0",
        "nvram",
        "mcelog",
        "sg0",
        "bsg",
        "raw",
        "mqueue",
        "hugepages",
        "log",
        "initctl",
        "xen",
        "gpiochip0",
    ),
)


def devices() -> None:
    for name in DEVICES:
        attempt(name, opens(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))


def main() -> None:
    mode, *args = sys.argv[1:]
    if mode == "change":
        change(args)
    elif mode == "walk":
        walk(args[0], args[1:])
    elif mode == "exe":
        exe(args[0])
    else:
        {"neighbours": neighbours, "stdio": stdio, "left": left_on_stdio, "devices": devices}[mode]()


main()
