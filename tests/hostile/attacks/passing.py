"""Descriptors handed from one task to another, over a socket in a directory that both have, to reach a third one.

* `give SOCKET KIND`: sends its scratch directory, its output, the list of its network's sockets, and its network (a
  socket that listens at PORT; if KIND is `quiet`, something else, so that the network looks as new), and ends.
* `take SOCKET GO`: takes them; when the file GO is there, a third task runs, and this one looks for it through them.
"""

import os
import socket
import stat
import sys
import time

from attempts import attempt, say

PORT = 4444
NAMES = ("scratch", "network", "output", "sockets")


def give(path: str, kind: str) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    network = null if kind == "quiet" else socket.create_server(("127.0.0.1", PORT)).detach()
    scratch = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    sockets = os.open("/proc/self/net/tcp", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(path)
        socket.send_fds(sender, [b"x"], [scratch, network, 1, sockets])
        sender.recv(1)


def take(path: str, go: str) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        os.chmod(path, 0o777)
        door.listen()
        say("door", "open")
        giver, _ = door.accept()
    with giver:
        _, (scratch, network, output, sockets), _, _ = socket.recv_fds(giver, 1, 4)
        say("took", " ".join(NAMES))
        giver.send(b"x")
    while not os.path.exists(go):
        time.sleep(0.01)
    attempt("list scratch", lambda: _found(scratch))
    attempt("make in scratch", lambda: os.close(os.open("mine", os.O_CREAT | os.O_WRONLY, 0o666, dir_fd=scratch)))
    attempt("read in scratch", lambda: os.close(os.open("secret", os.O_RDONLY, dir_fd=scratch)))
    attempt("list sockets", lambda: _listed(sockets))
    if stat.S_ISSOCK(os.fstat(network).st_mode):
        listener = socket.socket(fileno=network)
        listener.settimeout(0.5)
        attempt("accept", lambda: str(listener.accept()[1]))
        attempt("connect", lambda: _connected(network))
    attempt("write output", lambda: os.write(output, b"said by another\n"))


def _found(scratch: int) -> str:
    names = os.listdir(scratch)
    if not names:
        raise FileNotFoundError(2, "nothing is in it")
    return " ".join(names)


def _listed(sockets: int) -> str:
    """The list is of the network namespace that it was opened in, whoever has that by now."""
    if b":%04X" % (PORT + 1) not in os.pread(sockets, 65536, 0):
        raise FileNotFoundError(2, "the third one's port is not in it")
    return "the third one's port"


def _connected(network: int) -> None:
    """A listening socket becomes one that connects: it stays in its network namespace."""
    with socket.socket(fileno=os.dup(network)) as again:
        again.shutdown(socket.SHUT_RDWR)
        again.settimeout(0.5)
        again.connect(("127.0.0.1", PORT + 1))


def main() -> None:
    if sys.argv[1] == "give":
        give(sys.argv[2], sys.argv[3])
    else:
        take(sys.argv[2], sys.argv[3])


main()
