"""How far a log was read: what to ask for when its stream broke, and what was told before. Pure.

The node is asked again for the attempt of which the last message was, from the byte after the last one of each stream:
offsets are of the files, so that this holds after `tail_lines` and after what is missing too. Of a stream that had
given nothing by then the last lines are asked for again.
"""

from __future__ import annotations

from typing import Literal

from pilfer.v1 import tasks_pb2

_OFFSETS: dict[int, Literal["stdout_offset", "stderr_offset"]] = {
    tasks_pb2.LOG_STREAM_STDOUT: "stdout_offset",
    tasks_pb2.LOG_STREAM_STDERR: "stderr_offset",
}


class LogReading:
    """One reader of one log."""

    def __init__(self, request: tasks_pb2.LogRequest) -> None:
        self._request = request
        #: Where none was named and the stream is followed, further attempts are read too.
        self._goes_through = request.follow and not request.HasField("attempt")
        #: Of the newest message; 0: none came yet. What was asked for of the last lines concerns the first one alone.
        self._attempt = 0
        self._first_attempt = 0
        self._next: dict[int, int] = {}
        #: Notices of this attempt: a stream that is resumed tells some again.
        self._told: set[str] = set()

    def request(self) -> tasks_pb2.LogRequest:
        """What to ask for now."""
        request = tasks_pb2.LogRequest()
        request.CopyFrom(self._request)
        if not self._attempt:
            return request
        if self._attempt != self._first_attempt:
            request.ClearField("tail_lines")
        request.attempt = self._attempt
        request.through_attempts = self._goes_through
        for stream, offset in self._next.items():
            setattr(request, _OFFSETS[stream], offset)
        return request

    def take(self, response: tasks_pb2.LogResponse) -> bool:
        """Takes note of a response; False: it was told before."""
        if response.attempt != self._attempt:
            self._first_attempt = self._first_attempt or response.attempt
            self._attempt = response.attempt
            self._next.clear()
            self._told.clear()
        if response.notice and not response.missing_bytes:
            if response.notice in self._told:
                return False
            self._told.add(response.notice)
            return True
        self._next[response.stream] = response.offset + len(response.data)
        return True
