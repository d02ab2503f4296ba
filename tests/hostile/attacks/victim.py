"""A task that does its own work, and tells whether others reach it: `victim.py READY GO`.

A file in its scratch, a server on its loopback; then it tries what another might pretend to be.
"""

import os
import socket
import sys
import time

from attempts import say

PORT = 4444


def main() -> None:
    ready, go = sys.argv[1:]
    with open("secret", "w") as file:
        file.write("secret")
    server = socket.create_server(("127.0.0.1", PORT + 1))
    server.setblocking(False)
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", PORT))
    with open(ready, "w"):
        pass
    while not os.path.exists(go):
        time.sleep(0.01)
    say("scratch", " ".join(sorted(os.listdir("."))))
    for name, one in (("served", server.accept), ("connected", client.getpeername)):
        try:
            one()
            say(name, "SUCCEEDED")
        except OSError:
            say(name, "nobody")


main()
