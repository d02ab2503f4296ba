"""Keeps this node's certificates fresh: they are made anew at two thirds of their life, without a restart.

Also what is missing (a node that joined has no client's certificate yet) and what lacks a name (the host's address
changed) is made, as soon as somebody signs. The gRPC server and etcd read the files again at handshakes, and channels
are replaced in time (`node/peer_channels.py`), so that writing the files is all there is to do.

A look is cheap (two small files), so that there is no plan to go wrong when the clock is put forward or back: every
hour, or every sixtieth of the shortest life. A failure is told and tried again; a month is left when a certificate of
the usual life is due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from node.trust.authority import LEAF_LIFE_S, TrustError
from node.trust.material import Trust, due_leaves, lives_of, request_for, write_leaf
from node.trust.signer import NobodySigns, Signer

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3600.0
#: After a failure: at a start, peers that can sign may still be on their way.
RETRY_EVERY_S = 60.0
#: Looks during one life of a certificate, so that short lives are renewed in time too.
LOOKS_PER_LIFE = 60


async def renew(trust: Trust, signer: Signer, *, now: float, life_s: float = LEAF_LIFE_S) -> list[str]:
    """Makes each certificate anew that is due, misses a name or is missing, with the key that it has.

    Gives the names of the files that changed. Raises TrustError, NobodySigns and OSError; what was not yet changed is
    as it was.
    """
    changed: list[str] = []
    for leaf in due_leaves(trust, now):
        signed = await signer.sign(
            request_for(leaf), role=leaf.role, common_name=leaf.common_name, host_names=leaf.names, life_s=life_s
        )
        write_leaf(trust, leaf, signed)
        changed.append(leaf.cert.name)
    return changed


async def keep_certificates(
    trust: Trust, signer: Signer, *, life_s: float = LEAF_LIFE_S, clock: Callable[[], float] = time.time
) -> None:
    """Looks at once, and then from time to time. Ends when cancelled. `life_s`: of the certificates that are made."""
    while True:
        pause_s = LOOK_EVERY_S
        try:
            if changed := await renew(trust, signer, now=clock(), life_s=life_s):
                log.info("made anew: %s", ", ".join(changed))
        except (TrustError, NobodySigns, OSError) as error:
            log.warning("certificates cannot be made anew: %s", error)
            pause_s = RETRY_EVERY_S
        await asyncio.sleep(min(pause_s, _shortest_life_s(trust) / LOOKS_PER_LIFE))


def _shortest_life_s(trust: Trust) -> float:
    try:
        return min(lives_of(trust), default=LEAF_LIFE_S)
    except (TrustError, OSError):
        return LEAF_LIFE_S
