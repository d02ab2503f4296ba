"""Asking peers again and again: how long to wait between rounds, and what the log says meanwhile.

A node that cannot reach its cluster waits for as long as it lives. It asks soon at first (its peers may be starting
beside it), then every few seconds, and its operator can read at any time whom it asks and what they answer.

Must not do: ask, or decide when to give up.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

#: For jitter, where the caller has none of its own.
RANDOM: Final = random_module.Random()  # noqa: S311  (nothing secret hangs on it)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often peers are asked, and how often the log says so."""

    first_wait_s: float = 0.2
    longest_wait_s: float = 3.0
    say_every_s: float = 10.0


#: For a node in earnest; tests have less time.
PACE: Final = Pace()


class Rounds:
    """Waiting between rounds, longer and longer up to a limit, and saying so now and then."""

    #: Addresses named in one line of the log.
    _NAMED = 8

    def __init__(self, purpose: str, pace: Pace, random: random_module.Random) -> None:
        self._purpose = purpose
        self._pace = pace
        self._random = random
        self._wait_s = pace.first_wait_s
        self._said_at = -float("inf")

    async def wait(self, reasons: Mapping[str, str]) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= self._pace.say_every_s:
            self._said_at = now
            told = [f"{address}: {reason}" for address, reason in reasons.items()]
            more = f" (and {len(told) - self._NAMED} more)" if len(told) > self._NAMED else ""
            log.warning(
                "%s: no peer helps yet, still asking. %s%s", self._purpose, "; ".join(told[: self._NAMED]), more
            )
        # Jitter, so that the nodes of a cluster that comes up together do not ask in step.
        await asyncio.sleep(self._wait_s * self._random.uniform(0.5, 1.0))
        self._wait_s = min(self._wait_s * 2, self._pace.longest_wait_s)
