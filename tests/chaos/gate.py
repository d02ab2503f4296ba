"""Lets threads work, or holds them back, and knows when none is in the middle of something."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

WAIT_S = 0.5


class Gate:
    """Open at first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = True
        self._is_closed = False
        self._inside = 0
        #: When it was shut last, by time.monotonic().
        self.shut_at = 0.0

    def open(self) -> None:
        with self._changed:
            self._is_open = not self._is_closed
            self._changed.notify_all()

    def shut(self) -> None:
        """Until it is opened; returns when nobody is inside."""
        with self._changed:
            self._is_open, self.shut_at = False, time.monotonic()
            self._changed.wait_for(lambda: not self._inside)

    def close(self) -> None:
        """For good; does not wait."""
        with self._changed:
            self._is_open, self._is_closed = False, True
            self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Inside while it is open (True). Waits a little while it is shut, and then gives False: come again."""
        with self._changed:
            if not self._is_open and not self._is_closed:
                self._changed.wait(WAIT_S)
            is_open = self._is_open
            self._inside += is_open
        try:
            yield is_open
        finally:
            with self._changed:
                self._inside -= is_open
                self._changed.notify_all()
