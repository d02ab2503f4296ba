"""Attempts to use what opens much of the kernel to whoever may call it. Numbers are those of x86_64."""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path

from attempts import attempt_aside, call, say, syscall

X32 = 0x40000000
NR_GETPID, NR_GETPID_I386 = 39, 20
#: mov eax, 20 (getpid of i386); int 0x80; ret
INT_80 = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"
TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCSETD = 0x5412, 0x541C, 0x540E, 0x5423
READ_IMPLIES_EXEC = 0x0400000


def bpf() -> None:
    """An array map of one element; then the smallest program."""
    syscall(321, 0, struct.pack("4I56x", 2, 4, 8, 1), 72)


def bpf_program() -> None:
    code = ctypes.create_string_buffer(struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("2I2Q", 1, 2, ctypes.addressof(code), ctypes.addressof(licence)) + bytes(48)
    syscall(321, 5, attributes, len(attributes))


def key() -> str:
    """Into the session's keyring, and out of it again."""
    made = syscall(248, b"user", b"attack", b"secret", ctypes.c_long(6), -3)
    syscall(250, 11, made, ctypes.create_string_buffer(6), 6, 0)
    return "read back"


def io_uring() -> None:
    os.close(syscall(425, 1, ctypes.create_string_buffer(120)))


def perf() -> None:
    """Counts this process's own context switches (a software event)."""
    attributes = struct.pack("II3Q", 1, 112, 3, 0, 0) + bytes(8) + struct.pack("Q", 0b1100001) + bytes(56)
    os.close(syscall(298, attributes, 0, -1, -1, 0))


def userfault() -> None:
    os.close(syscall(323, 1))


def local_descriptor_table() -> None:
    entry = struct.pack("4I", 0, 0, 0xFFFFF, 0b1010001)
    syscall(154, 1, entry, len(entry))


def i386_call() -> int:
    """The number 20 is getpid in the old table and writev in ours."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(INT_80)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    found = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if found != os.getpid():
        raise OSError(errno.ENOSYS, "not done")
    return int(found)


def i386_program() -> str:
    """A 32-bit program of 8 instructions' length that exits with 42, by its own table's number of exit."""
    code = b"\xb8\x01\x00\x00\x00\xbb\x2a\x00\x00\x00\xcd\x80"
    base, entry = 0x08048000, 0x08048000 + 52 + 32
    size = 52 + 32 + len(code)
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000)
    path = Path("/tmp/program32")
    path.write_bytes(header + segment + code)
    path.chmod(0o755)
    status = os.spawnv(os.P_WAIT, path, [str(path)])
    if status != 42:
        raise OSError(errno.ENOSYS if status > 0 else errno.EPERM, f"ended with {status}")
    return "exit 42"


def x32_call() -> None:
    syscall(X32 + NR_GETPID)


def terminal(request: int) -> None:
    """Types a command into a terminal, or has the console do it. With a terminal of its own as the session's."""
    os.setsid()
    main, sub = os.openpty()
    fcntl.ioctl(sub, TIOCSCTTY, 0)
    fcntl.ioctl(sub, request, b"\x02" if request == TIOCLINUX else b"x")
    os.write(main, b"\n")
    if request == TIOCSTI and b"x" not in os.read(sub, 10):
        raise OSError(errno.EIO, "not typed")


def line_discipline() -> None:
    """Another discipline of lines, in a module that a call for it loads (n_gsm: 21, n_hdlc: 13)."""
    _, sub = os.openpty()
    fcntl.ioctl(sub, TIOCSETD, struct.pack("i", 21))


def family(number: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> None:
    socket.socket(number, kind, protocol).close()


def change_link() -> None:
    """Takes the loopback down by netlink (RTM_NEWLINK, index 1, without IFF_UP)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        body = struct.pack("BxHiII", 0, 0, 1, 0, 1)
        link.send(struct.pack("IHHII", 16 + len(body), 16, 5, 1, 0) + body)
        (number,) = struct.unpack_from("i", link.recv(4096), 16)
        if number:
            raise OSError(-number, os.strerror(-number))


def personality(bits: int) -> None:
    call("personality", ctypes.c_ulong(bits))


def handle() -> None:
    """Opens a file by the number of its inode, past every directory above it: how a container was once escaped."""
    name = struct.pack("Ii", 128, 0) + bytes(128)
    buffer = ctypes.create_string_buffer(name, len(name))
    directory = os.open("/tmp", os.O_RDONLY)
    Path("/tmp/by-handle").touch()
    mount_id = ctypes.c_int()
    syscall(303, directory, b"by-handle", buffer, ctypes.byref(mount_id), 0)
    os.close(syscall(304, directory, buffer, os.O_RDONLY))


#: Families that talk past a network namespace, or that whole modules are loaded for.
FAMILIES = {
    "alg": (38, socket.SOCK_SEQPACKET),
    "vsock": (40, socket.SOCK_STREAM),
    "packet": (17, socket.SOCK_RAW),
    "bluetooth": (31, socket.SOCK_RAW),
    "can": (29, socket.SOCK_RAW),
    "tipc": (30, socket.SOCK_SEQPACKET),
    "rds": (21, socket.SOCK_SEQPACKET),
    "xdp": (44, socket.SOCK_RAW),
    "smc": (43, socket.SOCK_STREAM),
    "key": (15, socket.SOCK_RAW),
    "ax25": (3, socket.SOCK_DGRAM),
    "x25": (9, socket.SOCK_SEQPACKET),
    "nfc": (39, socket.SOCK_SEQPACKET),
    "kcm": (41, socket.SOCK_DGRAM),
    "qipcrtr": (42, socket.SOCK_DGRAM),
}


def main() -> None:
    attempt_aside("bpf map", bpf)
    attempt_aside("bpf program", bpf_program)
    attempt_aside("key", key)
    attempt_aside("request_key", lambda: syscall(249, b"user", b"attack", None, 0))
    attempt_aside("io_uring", io_uring)
    attempt_aside("perf", perf)
    attempt_aside("userfaultfd", userfault)
    attempt_aside("modify_ldt", local_descriptor_table)
    attempt_aside("iopl", lambda: syscall(172, 3))
    attempt_aside("ioperm", lambda: syscall(173, 0x80, 1, 1))
    attempt_aside("i386 call", i386_call)
    attempt_aside("i386 program", i386_program)
    attempt_aside("x32 call", x32_call)
    attempt_aside("personality READ_IMPLIES_EXEC", lambda: personality(READ_IMPLIES_EXEC))
    attempt_aside("quotactl", lambda: syscall(179, 0x800001 << 8, None, 0, None))
    attempt_aside("open by handle", handle)
    attempt_aside("TIOCSTI", lambda: terminal(TIOCSTI))
    attempt_aside("TIOCSTI, upper bits set", lambda: syscall(16, os.openpty()[1], TIOCSTI | 1 << 32, b"x"))
    attempt_aside("TIOCLINUX", lambda: terminal(TIOCLINUX))
    attempt_aside("TIOCSETD", line_discipline)
    attempt_aside("raw socket", lambda: family(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
    attempt_aside("raw icmp socket", lambda: family(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    attempt_aside("link down", change_link)
    for name, (number, kind) in FAMILIES.items():
        attempt_aside(f"family {name}", lambda number=number, kind=kind: family(number, kind))
    say("done", "yes")


if __name__ == "__main__":
    main()
