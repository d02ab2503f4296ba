"""A client in a process of its own, to be killed in the middle of what it does.

    python -m tests.chaos.clients ADDRESSES submit         tasks on stdin, one a line: pilfer.v1.NewTask in base64
    python -m tests.chaos.clients ADDRESSES follow ID      reads the log of a task to its end

What was acknowledged to it, it writes down: the number of tasks stored so far, a line each time. Whoever kills it reads
that, and knows what must not be lost.
"""

from __future__ import annotations

import base64
import sys

from pilfer import Client, PilferError
from pilfer.v1 import tasks_pb2

#: In one call; several calls for what it is given, so that there is a middle.
BATCH = 4
PATIENCE_S = 30.0


def submit(client: Client) -> None:
    tasks = [tasks_pb2.NewTask.FromString(base64.b64decode(line)) for line in sys.stdin.read().split()]
    client.submit_many(tasks, batch=BATCH, on_progress=lambda count: print(count, flush=True))


def main(addresses: str, what: str, *ids: str) -> int:
    try:
        with Client(addresses, patience_s=PATIENCE_S) as client:
            if what == "submit":
                submit(client)
            else:
                for _ in client.log(ids[0], follow=True):
                    pass
    except PilferError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
