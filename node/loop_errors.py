"""What asyncio tells of callbacks that failed: a defect, but for one case that is nobody's.

grpc has one queue of events for all loops of a process. A session's loop (`node/cluster/session.py`) ends with the
session, and an event of a call that ended with it may come after that, however long the session lingers: grpc's
callback in the node's loop then finds the other one closed. The event is of no use to anybody; what came together with
it waits for the next one, and pings of the lease bring one every second or two.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)


def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`."""
    error, callback = context.get("exception"), context.get("handle")
    if isinstance(error, RuntimeError) and "PollerCompletionQueue" in repr(callback) and "closed" in str(error):
        log.debug("an event of a session that is over: %s", error)
        return
    loop.default_exception_handler(context)
