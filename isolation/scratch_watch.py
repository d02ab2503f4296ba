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
    path: str
    limit: Space
    known: Known
    #: In the file system, when the sandbox began.
    free_at_first: Space
    #: It was over its limit the last time.
    is_suspect: bool = False
    #: Since when it holds files in messages, while much is gone that nobody has.
    hides_since_s: float | None = None


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
        free: Callable[[], Space] | None = None,
    ) -> None:
        """root_fd: the directory that has them, by name. proc_fd: the host's /proc. pids_of: the processes of a
        sandbox. on_over: called with a name and words when it is to be ended. clock: seconds that only rise.
        limit_bytes: of each. free: what is free in the file system; by default it is asked. Raises OSError."""
        self._root_fd = root_fd
        self._proc_fd = proc_fd
        self._pids_of = pids_of
        self._on_over = on_over
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._ask_free = free or self._ask_statvfs
        self._last_free = self._ask_free()
        #: All and only directories whose sandboxes live, oldest first.
        self._watched: dict[str, _Watched] = {}
        self._measurement: _Measurement | None = None
        #: Until then nothing is walked without a reason.
        self._routine_from_s = 0.0

    def add(self, name: str, wanted_bytes: int | None, path: str | None = None) -> None:
        """A new and empty directory. wanted_bytes: its own limit; more than each may have is as much. path: below the
        root, where that is not the name."""
        free = self._free()
        limit = policy.limit_of(wanted_bytes, self._limit_bytes)
        self._watched[name] = _Watched(path or name, limit, Known(Space(0, 0), free, self._clock()), free)

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
            now = self._clock()
            name = policy.next_to_measure(trees, free, now, is_routine_due=now >= self._routine_from_s)
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
            measurement.parts.append(Tree(self._root_fd, self._watched[name].path, count))
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
        else:
            self._judge_hidden(measurement.name, watched, measurement.count.in_flight)

    def _judge_hidden(self, name: str, watched: _Watched, in_flight: int) -> None:
        """Files in messages cannot be measured. What is gone may be anybody's; so both, and for a while."""
        used = [one.known.used for one in self._watched.values()]
        hidden = policy.unexplained_bytes(watched.free_at_first, self._free(), used)
        if not in_flight or hidden <= watched.limit.bytes:
            watched.hides_since_s = None
        elif watched.hides_since_s is None:
            watched.hides_since_s = self._clock()
        elif self._clock() - watched.hides_since_s >= policy.HIDING_S:
            del self._watched[name]
            self._on_over(name, policy.words_of_hidden(hidden, watched.limit))

    def _note(self, measurement: _Measurement, used: Space) -> None:
        took_s = self._clock() - measurement.at_s
        self._routine_from_s = self._clock() + policy.routine_rest_s(took_s)
        self._watched[measurement.name].known = Known(used, measurement.free, self._clock(), took_s)

    def _free(self) -> Space:
        # A broken disk must not stop the spawner: then each is measured when its time has come.
        with contextlib.suppress(OSError):
            self._last_free = self._ask_free()
        return self._last_free

    def _ask_statvfs(self) -> Space:
        found = os.fstatvfs(self._root_fd)
        return Space(found.f_bfree * found.f_frsize, found.f_ffree)
