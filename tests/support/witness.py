"""An outsider's look at etcd: runs in an environment of its own, with the package etcd3 and nothing of ours.

usage: witness.py HOST PORT CA CERT KEY
Writes one JSON object a line: {"ready": true} when its watch stands, then every event below /task/ and /node/; for each
line that it reads, all keys as they are now ({"keys": [...]}). Ends with its input.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from typing import Any

import etcd3  # type: ignore[import-not-found]  # installed only in the environment that this file runs in

PREFIXES = ("/task/", "/node/")
_writing = threading.Lock()


def tell(**what: Any) -> None:
    with _writing:
        print(json.dumps(what), flush=True)


def take_in(response: Any) -> None:
    for event in getattr(response, "events", [response]):
        tell(
            key=event.key.decode(),
            value=base64.b64encode(event.value).decode(),
            is_delete=isinstance(event, etcd3.events.DeleteEvent),
            mod_revision=event.mod_revision,
            create_revision=event.create_revision,
            version=event.version,
        )


def main(host: str, port: str, ca: str, cert: str, key: str) -> None:
    client = etcd3.client(host=host, port=int(port), ca_cert=ca, cert_cert=cert, cert_key=key, timeout=20)
    watches = [client.add_watch_prefix_callback(prefix, take_in) for prefix in PREFIXES]
    tell(ready=True)
    for _ in sys.stdin:
        found = [kv for prefix in PREFIXES for kv in client.get_prefix(prefix)]
        tell(keys={meta.key.decode(): base64.b64encode(value).decode() for value, meta in found})
    for watch in watches:
        client.cancel_watch(watch)
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
