"""Keeps this node's certificates fresh: they are made anew at two thirds of their life, without a restart.

The gRPC server and etcd read the files again at handshakes, so that writing them is all there is to do.
"""

from __future__ import annotations

import asyncio
import logging
import time

from node.trust import Trust, TrustError, renew_if_due

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3600.0


async def keep_certificates(trust: Trust) -> None:
    """Ends when cancelled. A failure is told and tried again: there is a month left when a certificate is due."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            if renew_if_due(trust, time.time()):
                log.info("certificates are made anew")
        except (TrustError, OSError) as error:
            log.error("certificates cannot be made anew: %s", error)  # noqa: TRY400  (told, and tried again)
