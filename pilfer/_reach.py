"""How calls reach whichever of the named nodes answers: retries, and turning from one node to another.

A call that no node answers is repeated, with the same request, until the patience or the deadline is over. That does
nothing twice (`pilfer/_retry.py` says why). Where several nodes are named, each failure leads to the next one
(`pilfer/_choice.py`).

Silence. A frozen node keeps its connections and answers nothing, so how long an answer may take is told of each call:

    quick        milliseconds where all is well: after SILENCE_S the next node is asked
    may be long  much data, or an answer that needs other nodes: the node is first asked for a sign of life, unless it
                 gave one just now; should it freeze later, the connection's pings tell (`_transport.py`)
    stream       as the one before

A node that is cut off from the others lives, and its streams stand, with nothing to tell. So a stream that can be begun
again at no cost is begun again now and then: a node without a quorum refuses that, and the next one is asked.

With a single node there is nobody to turn to, and all this is left out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from pilfer._choice import Choice, Tour
from pilfer._retry import Patience
from pilfer._transport import DESCRIBE, Call, Transport
from pilfer.address import Target
from pilfer.errors import PilferError, TimedOut, Unavailable
from pilfer.v1 import nodes_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

#: One try of a call; a node that has not answered by then is asked again.
TRY_S = 10.0
#: A node that answered so lately needs give no other sign of life.
_HEARD_S = 1.0
#: A stream that stood for so long was in order, though nothing came: its patience starts anew.
_STOOD_S = 30.0
#: How long a stream may stand that is renewed.
_RENEW_S = 60.0


class _Renewal(Unavailable):
    """Nothing is wrong: the stream is to be begun again."""


class Reach:
    """The nodes of one client, and the transport to each."""

    def __init__(
        self,
        targets: Sequence[Target],
        transport: Callable[[Target], Transport],
        *,
        timeout_s: float,
        patience_s: float,
    ) -> None:
        """timeout_s: of one call, all its tries together. patience_s: how long it tries while no node answers."""
        self.choice = Choice(targets)
        self.patience_s = patience_s
        self._timeout_s = timeout_s
        self._transports = [transport(target) for target in targets]
        #: When each was last heard.
        self._heard = [float("-inf")] * len(self._transports)

    async def close(self) -> None:
        """Ends all calls and gives up the connections."""
        for transport in self._transports:
            await transport.close()

    async def sleep(self, delay_s: float) -> None:
        await self._transports[0].sleep(delay_s)

    async def call(
        self,
        call: Call[Request, Response],
        request: Request,
        *,
        try_s: float = TRY_S,
        timeout_s: float | None = None,
        may_be_long: bool = False,
    ) -> Response:
        """A unary call with its retries. try_s: how long one try may take. timeout_s: in place of the client's.

        Raises what the last try raised; where several nodes are named, with what each said.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        trying = self.trying(deadline)
        while True:
            try:
                return await trying.unary(call, request, try_s, may_be_long=may_be_long)
            except (Unavailable, TimedOut) as error:
                await trying.pause_after(error)

    def trying(self, deadline: float | None) -> Trying:
        """For one call or one stream. deadline: the caller's, on the monotonic clock."""
        return Trying(self, deadline)

    # For Trying

    async def unary(self, index: int, call: Call[Request, Response], request: Request, timeout_s: float) -> Response:
        try:
            response = await self._transports[index].unary(call, request, max(0.001, timeout_s))
        except (Unavailable, TimedOut):
            raise
        except PilferError:
            self.heard(index)
            raise
        self.heard(index)
        return response

    def stream(
        self, index: int, call: Call[Request, Response], request: Request, timeout_s: float
    ) -> AsyncGenerator[Response, None]:
        return self._transports[index].stream(call, request, None if timeout_s == float("inf") else timeout_s)

    def heard(self, index: int) -> None:
        self._heard[index] = time.monotonic()

    def was_heard_lately(self, index: int) -> bool:
        return time.monotonic() - self._heard[index] < _HEARD_S


class Trying:
    """One call's or one stream's tries, from node to node."""

    def __init__(self, reach: Reach, deadline: float | None) -> None:
        self._reach = reach
        self._tour = Tour(reach.choice)
        self._patience = Patience(reach.patience_s, deadline)
        self._deadline = deadline
        self._began = time.monotonic()
        #: Of the try that is under way: for how long an answer was waited for.
        self._silence_s: float | None = None

    async def unary(
        self, call: Call[Request, Response], request: Request, try_s: float, *, may_be_long: bool
    ) -> Response:
        """One try. After Unavailable and TimedOut, `pause_after`."""
        if may_be_long:
            await self._wait_sign_of_life()
            silence_s = try_s
        else:
            silence_s = self._tour.silence_s(try_s)
        self._silence_s = self._within_deadline(silence_s)
        try:
            response = await self._reach.unary(self._tour.index, call, request, self._silence_s)
        except (Unavailable, TimedOut):
            raise
        except PilferError:
            self._tour.answered()
            raise
        self._tour.answered()
        return response

    async def stream(
        self, call: Call[Request, Response], request: Request, *, can_renew: bool = False
    ) -> AsyncGenerator[Response, None]:
        """One try. After Unavailable, `pause_after`. Raises TimedOut at the caller's deadline.

        can_renew: the caller can begin it again at any moment without losing or repeating anything.
        """
        try:
            await self._wait_sign_of_life()
        except TimedOut as error:
            if self._is_over():
                raise
            raise Unavailable(f"no answer within {self._silence_s:.3g} s", code=error.code) from None
        self._silence_s = None
        began = time.monotonic()
        stands_s = _RENEW_S if can_renew and not self._reach.choice.is_only_one else float("inf")
        left_s = self._within_deadline(stands_s)
        try:
            async with aclosing(self._reach.stream(self._tour.index, call, request, left_s)) as responses:
                async for response in responses:
                    self._reach.heard(self._tour.index)
                    self._tour.answered()
                    self._patience.succeeded()
                    yield response
        except TimedOut as error:
            if left_s < stands_s or time.monotonic() - began < stands_s / 2:
                raise  # the caller's deadline, or the node's own word
            raise _Renewal(error.message) from None
        except Unavailable:
            if time.monotonic() - began >= _STOOD_S:
                self._patience.succeeded()
            raise

    async def pause_after(self, error: Unavailable | TimedOut) -> None:
        """Turns to the next node; pauses when each was asked. Raises the error when it is time to give up."""
        if isinstance(error, _Renewal):
            self._patience.succeeded()
            return
        is_silent = self._silence_s is not None and isinstance(error, TimedOut)
        is_round_over = self._tour.failed(error, silence_s=self._silence_s if is_silent else None)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            if is_silent:
                # Of all tries together; the last one may have been short.
                error = TimedOut(f"no answer within {self._deadline - self._began:.3g} s", code=error.code)
            raise self._tour.verdict(error)
        if isinstance(error, TimedOut):
            return  # time has passed; and a node that takes calls may answer yet, until the deadline
        if not is_round_over:
            self._patience.failed(time.monotonic())
            return
        pause_s = self._patience.pause_s(time.monotonic())
        if pause_s is None:
            raise self._tour.verdict(error)
        await self._reach.sleep(pause_s)

    async def _wait_sign_of_life(self) -> None:
        """Where there are others to turn to. Raises Unavailable, TimedOut."""
        index = self._tour.index
        if self._reach.choice.is_only_one or self._reach.was_heard_lately(index):
            return
        self._silence_s = self._within_deadline(self._tour.silence_s(TRY_S))
        try:
            await self._reach.unary(index, DESCRIBE, nodes_pb2.DescribeRequest(), self._silence_s)
        except (Unavailable, TimedOut):
            raise
        except PilferError:
            return  # any answer is a sign of life

    def _within_deadline(self, seconds: float) -> float:
        if self._deadline is None:
            return seconds
        return max(0.001, min(seconds, self._deadline - time.monotonic()))

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
