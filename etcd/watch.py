"""List, then watch: how every duty follows a range of keys.

Rule: list at some revision, then watch from that revision + 1; after compaction, list again. What is delivered never
goes back in time. A consumer that treats each Listing as the whole truth and each WatchBatch as changes to it ends in
the right state whatever was missed in between.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from etcd.errors import Compacted, StoreUnavailable
from etcd.port import Etcd, KeyRange, KeyValue, Range, WatchBatch

log = logging.getLogger(__name__)

#: Pauses between attempts to list, doubled from the first to the last, each drawn from its upper half.
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0
#: For one listing, doubled from the first to the last where it takes longer: one of a million keys takes 3 s on a quiet
#: machine, many times that on a crowded one, and a small one whose answer was lost is not to be waited for as long.
FIRST_LIST_TIMEOUT_S = 5.0
LAST_LIST_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class Listing:
    """All that is in the range at `revision`: forget what you knew."""

    kvs: tuple[KeyValue, ...]
    revision: int
    #: There was more than the limit: these are the first.
    is_cut: bool = False


async def list_and_watch(
    etcd: Etcd, key_range: KeyRange, *, keys_only: bool = False, limit: int = 0, rng: random.Random | None = None
) -> AsyncGenerator[Listing | WatchBatch, None]:
    """A Listing, then WatchBatches with events, for ever; another Listing after compaction. keys_only and
    limit (0: none) are for the listing: events carry their values, and are told of keys beyond the limit too.

    Waits through outages by itself and never raises for them; ends when it is closed or canceled. Close it
    (`contextlib.aclosing`) when leaving the loop early. Canceling a single `anext` ends it, as with any generator.
    """
    rng = rng or random.Random()  # noqa: S311  (jitter, not secrets)
    pause_s = FIRST_PAUSE_S
    timeout_s = FIRST_LIST_TIMEOUT_S
    what = Range(key_range.key, key_range.range_end, limit=limit, keys_only=keys_only)
    while True:
        began = asyncio.get_running_loop().time()
        try:
            listed = await etcd.range(what, timeout_s=timeout_s)
            took_s = asyncio.get_running_loop().time() - began
            timeout_s = min(max(FIRST_LIST_TIMEOUT_S, 2 * took_s), LAST_LIST_TIMEOUT_S)
            began = math.inf
            async with etcd.watch([key_range], start_revision=listed.revision + 1) as watch:
                pause_s = FIRST_PAUSE_S
                yield Listing(listed.kvs, listed.revision, listed.more)
                async for batch in watch:
                    if batch.events:
                        yield batch
        except Compacted as error:
            log.info("listing %r again: %s", key_range.key, error)
        except StoreUnavailable as error:
            log.warning("cannot list %r, trying again: %s", key_range.key, error)
            if asyncio.get_running_loop().time() - began >= 0.9 * timeout_s:  # not refused at once
                timeout_s = min(2 * timeout_s, LAST_LIST_TIMEOUT_S)
        await asyncio.sleep(pause_s * rng.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
