"""Looks for the secrets of others: `secrets.py MODE ARG...`.

* `files PATH...`: whether these can be listed or read.
* `everywhere WORD`: WORD (given reversed, so that this process itself is not found) in every readable file of /proc,
  /sys, /etc and of what is the task's own, and in their names.
* `memory WORD...`: WORDs, reversed too, in memory: its own, and new pages; what can be had of PID 1.
* `left`: what an earlier task left in places that this one now has.
"""

import mmap
import os
import re
import socket
import sys
from functools import partial

from attempts import attempt, say


def files(paths: list[str]) -> None:
    for path in paths:
        attempt(f"read {path}", partial(read, path))
        attempt(f"list {path}", partial(listed, path))


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return f"{len(os.read(fd, 10))} bytes"
    finally:
        os.close(fd)


def listed(path: str) -> str:
    names = os.listdir(path)
    if not names:
        raise FileNotFoundError(2, "empty")
    return " ".join(names)


def everywhere(reversed_word: str) -> None:
    word = reversed_word[::-1].encode()
    found, looked = [], 0
    for root in ("/proc", "/tmp", ".", "/sys/kernel", "/dev", "/run", "/var/tmp", "/var/log", "/etc"):
        for directory, _, names in os.walk(root):
            # The numbered directories of /proc hold each file once per thread.
            if "/task/" in directory or directory.startswith("/proc/self/"):
                continue
            for name in names:
                path = os.path.join(directory, name)
                looked += 1
                if word in name.encode(errors="replace") or word in contents(path):
                    found.append(path)
    say("looked into", str(looked))
    say("found in", " ".join(found))


def contents(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 20)
    except OSError:
        return b""
    finally:
        os.close(fd)


def memory(reversed_words: list[str]) -> None:
    words = [word[::-1].encode() for word in reversed_words]
    pattern = re.compile(b"|".join(re.escape(word[:1]) + b"(?=" + re.escape(word[1:]) + b")" for word in words))
    del words
    own = re.compile(rb"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) r")
    hits = 0
    looked = 0
    # New pages first, before our own reading fills memory.
    with mmap.mmap(-1, 32 << 20) as fresh:
        say("new pages", "zero" if not any(fresh[at] for at in range(0, len(fresh), 512)) else "SUCCEEDED")
    with open("/proc/self/mem", "rb", 0) as mem, open("/proc/self/maps", "rb") as maps:
        for line in maps.read().splitlines():
            match = own.match(line)
            if match is None or b"[v" in line:
                continue
            start, end = int(match["start"], 16), int(match["end"], 16)
            for at in range(start, end, 1 << 20):
                mem.seek(at)
                try:
                    block = mem.read(min(1 << 20, end - at))
                except OSError:
                    continue
                looked += len(block)
                # What is matched is the first letter with the rest seen ahead, so that no copy of the word is made.
                hits += sum(1 for _ in pattern.finditer(block))
    say("own memory", f"{hits} in {looked >> 20} MiB")
    attempt("memory of PID 1", partial(read, "/proc/1/mem"))
    attempt("environment of PID 1", partial(read, "/proc/1/environ"))
    # Its arguments are for everybody in the namespace.
    line = contents("/proc/1/cmdline")
    say("arguments of PID 1", line.replace(b"\0", b" ").decode())


def left() -> None:
    say("scratch", " ".join(os.listdir(".")))
    say("scratch attributes", " ".join(os.listxattr(".")))
    say("tmp", " ".join(os.listdir("/tmp")))
    with open("/proc/net/unix") as file:
        say("unix sockets", str(len(file.readlines()) - 1))
    for kind in ("tcp", "tcp6", "udp", "raw", "ip6_flowlabel"):
        try:
            with open(f"/proc/net/{kind}") as file:
                say(kind, str(len(file.readlines()) - 1))
        except FileNotFoundError:
            say(kind, "0")
    for kind in ("shm", "msg", "sem"):
        with open(f"/proc/sysvipc/{kind}") as file:
            say(f"sysv {kind}", str(len(file.readlines()) - 1))
    with open("/proc/net/dev") as file:
        say("packets", next(line.split()[2] for line in file if "lo:" in line))
    try:
        with socket.socket() as server:  # without SO_REUSEADDR, which takes a port that waits
            server.bind(("127.0.0.1", 7777))
        say("port", "free")
    except OSError:
        say("port", "taken")
    with open("/proc/self/mountinfo") as file:
        say("mounts", str(len(file.readlines())))


def main() -> None:
    mode, *args = sys.argv[1:]
    if mode == "files":
        files(args)
    elif mode == "everywhere":
        everywhere(args[0])
    elif mode == "memory":
        memory(args)
    else:
        left()


main()
