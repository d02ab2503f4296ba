"""Holds scratch directories to their limits, where the file system itself does not (`quota.py`): by watching them.

A look at the free space each 0.1 s tells whether any directory may have grown over its limit
(`scratch_policy.py`); then it is walked, one at a time, in steps of half a millisecond between the spawner's other
work (`scratch_tree.py`). What is over its limit twice in a row is told to the spawner, which ends the sandbox.

So a task that writes as fast as it can is over its limit by what it writes in about 0.2 s and during two walks, or,
where others free as much as it writes, in AGAIN_S. It never waits for any of this, and neither does the spawner.

Must not do: end anything; write anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from isolation import scratch_policy as policy
from isolation.scratch_policy import Known, Space
from isolation.scratch_tree import Count, Measuring, Nameless, Tree


@dataclass(slots=True)
class _Watched:
    limit: Space
    known: Known
    #: It was over its limit the last time.
    is_suspect: bool = False


@dataclass(slots=True)
class _Measurement:
    name: str
    count: Count
    #: What is still to be walked; the first is under way.
    parts: list[Measuring]
    free: Space
    at_s: float


class ScratchWatch:
    """All living scratch directories of a spawner. Nothing in it waits, and only `step` walks."""

    def __init__(
        self,
        root_fd: int,
        proc_fd: int,
        *,
        pids_of: Callable[[str], list[int]],
        on_over: Callable[[str, str], None],
        clock: Callable[[], float],
        limit_bytes: int,
    ) -> None:
        """root_fd: the directory that has them, by name. proc_fd: the host's /proc. pids_of: the processes of a
        sandbox. on_over: called with a name and words when it is to be ended. clock: seconds that only rise.
        limit_bytes: of each. Raises OSError."""
        self._root_fd = root_fd
        self._proc_fd = proc_fd
        self._pids_of = pids_of
        self._on_over = on_over
        self._clock = clock
        found = os.fstatvfs(root_fd)
        self._limit_bytes = limit_bytes
        self._last_free = Space(found.f_bfree * found.f_frsize, found.f_ffree)
        #: All and only directories whose sandboxes live, oldest first.
        self._watched: dict[str, _Watched] = {}
        self._measurement: _Measurement | None = None

    def add(self, name: str, wanted_bytes: int | None) -> None:
        """A new and empty directory. wanted_bytes: its own limit; more than each may have is as much."""
        self._watched[name] = _Watched(policy.limit_of(wanted_bytes, self._limit_bytes), self._as_empty())

    def remove(self, name: str) -> None:
        """Its sandbox is gone; quiet where it is not watched."""
        self._watched.pop(name, None)
        if self._measurement is not None and self._measurement.name == name:
            self._end()

    @property
    def is_idle(self) -> bool:
        """There is nothing to look at."""
        return not self._watched

    def look(self) -> bool:
        """Asks for the free space. Returns whether `step` has something to do now."""
        if self._measurement is None and self._watched:
            trees = ((name, one.known, one.limit) for name, one in self._watched.items())
            free = self._free()
            name = policy.next_to_measure(trees, free, self._clock())
            if name is not None:
                self._begin(name, free)
        return self._measurement is not None

    def step(self) -> bool:
        """Walks for a moment, if there is something to walk; True when there is not, until the next look."""
        measurement = self._measurement
        if measurement is None:
            return True
        try:
            if measurement.parts and not measurement.parts[0].step():
                return False
            if measurement.parts:
                measurement.parts.pop(0).close()
            if measurement.parts and not measurement.count.is_over:
                return False
        except OSError:
            # No descriptors, a broken disk: it is measured again, and counts as it did until then.
            self._end()
            self._note(measurement, self._watched[measurement.name].known.used)
        else:
            self._end()
            self._judge(measurement)
        return not self.look()

    def close(self) -> None:
        self._end()
        self._watched.clear()

    def _begin(self, name: str, free: Space) -> None:
        count = Count(self._watched[name].limit)
        measurement = _Measurement(name, count, [], free, self._clock())
        try:
            measurement.parts.append(Tree(self._root_fd, name, count))
        except OSError:
            self._note(measurement, self._watched[name].known.used)
            return
        measurement.parts.append(Nameless(self._proc_fd, self._pids_of(name), count))
        self._measurement = measurement

    def _end(self) -> None:
        measurement, self._measurement = self._measurement, None
        if measurement is not None:
            for part in measurement.parts:
                part.close()

    def _judge(self, measurement: _Measurement) -> None:
        watched = self._watched[measurement.name]
        was_suspect, watched.is_suspect = watched.is_suspect, measurement.count.is_over
        self._note(measurement, measurement.count.used)
        if watched.is_suspect and was_suspect:
            del self._watched[measurement.name]
            self._on_over(measurement.name, policy.words(measurement.count.used, watched.limit))
        elif watched.is_suspect:
            # What was moved meanwhile may have been counted twice.
            self._begin(measurement.name, self._free())

    def _note(self, measurement: _Measurement, used: Space) -> None:
        took_s = self._clock() - measurement.at_s
        self._watched[measurement.name].known = Known(used, measurement.free, self._clock(), took_s)

    def _as_empty(self) -> Known:
        return Known(Space(0, 0), self._free(), self._clock())

    def _free(self) -> Space:
        # A broken disk must not stop the spawner: then each is measured when its time has come.
        with contextlib.suppress(OSError):
            found = os.fstatvfs(self._root_fd)
            self._last_free = Space(found.f_bfree * found.f_frsize, found.f_ffree)
        return self._last_free
