"""Reaches for sockets: `sockets.py ADDRESS...`, each `unix:PATH`, `abstract:NAME`, `tcp:HOST:PORT` or `tls:HOST:PORT`.

tls is spoken to without trust in the other end, and with the certificate of the environment's CERTIFICATE where that is
given. It succeeds when a single byte is answered to a question, since a server may say no only after the handshake.
"""

import os
import socket
import ssl
import sys
from functools import partial

from attempts import attempt

TIMEOUT_S = 5.0
#: What an HTTP/2 server (grpc) and an HTTP/1 server (etcd's version page) both have to answer.
QUESTIONS = {
    "h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
    "http/1.1": b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


def reach(address: str) -> str:
    kind, _, rest = address.partition(":")
    if kind in ("unix", "abstract"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(rest if kind == "unix" else "\0" + rest)
        return "connected"
    host, _, port = rest.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as sock:
        return "connected" if kind == "tcp" else ask(sock)


def ask(sock: socket.socket) -> str:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(QUESTIONS))
    if certificate := os.environ.get("CERTIFICATE"):
        context.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
    try:
        with context.wrap_socket(sock) as secure:
            secure.sendall(QUESTIONS[secure.selected_alpn_protocol() or "http/1.1"])
            answer = secure.recv(100)
    except (ssl.SSLError, ConnectionResetError) as error:
        raise PermissionError(1, f"{error}") from error
    if not answer:
        raise PermissionError(1, "closed")
    return "was answered"


def main() -> None:
    for address in sys.argv[1:]:
        attempt(address, partial(reach, address))


main()
