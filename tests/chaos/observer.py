"""Follows etcd's history while it happens, and judges it: a process of its own, in a place of the network that no fault
touches.

    python -m tests.chaos.observer DIRECTORY          commands on stdin, what it finds on stdout: JSON, one a line

Theory. A long run is compacted, and a full quota compacts at once, so the history is not there at the end. It is
followed by a watch through any voter that can be reached, from the revision after the last one that was judged; what is
silent for a while is left for the next (a voter without a quorum is silent, and one that is stopped). Where compaction
was faster, the history has a gap: it is told, and goes on from a snapshot of all keys at one revision, compared with
what was known before it. So what is kept in memory is what lives, and the newest of what was forgotten.

A recovery by an operator begins a new history, in which revisions may be given out once more. It is known by the
cluster's epoch, which is read at each connection: while it is another one than that of the history, nothing is
followed, until the word comes that a new epoch was meant to begin.

Everything that was followed is kept on disk as JSON lines, the newest parts of it.

Commands: {"voters": [[ENDPOINT, PKI], ...]}, {"epoch": REASON}, {"finish": FILE of ids that must be known}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TextIO

from etcd import codec, keys
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.errors import Compacted, RecordCorrupt, StoreError
from etcd.port import Etcd, Event, Range
from node.core import lifecycle
from pilfer.address import NODE_DNS_NAME
from tests.chaos.forgetting import KEEP_S
from tests.support.history import EVERYTHING, History, apply_batch, judgement

#: A voter that says nothing for so long is left for another one.
SILENCE_S = 4.0
#: Before the next voter is tried.
PAUSE_S = 0.2
#: At the end, for reading on to the newest revision.
FINISH_S = 60.0
#: A part of the file, and how many of them are kept.
PART_BYTES = 32 * 1024 * 1024
PARTS_KEPT = 3


class Parts:
    """A file in parts, of which the newest are kept."""

    def __init__(self, directory: Path, *, part_bytes: int = PART_BYTES, parts_kept: int = PARTS_KEPT) -> None:
        self._directory = directory
        self._part_bytes = part_bytes
        self._parts_kept = parts_kept
        self._number = 0
        self._file: TextIO | None = None
        self._size = 0

    def write(self, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        if self._file is None or self._size > self._part_bytes:
            self.close()
            self._number += 1
            self._path(self._number - self._parts_kept).unlink(missing_ok=True)
            self._file, self._size = self._path(self._number).open("w"), 0
        self._file.write(text)
        self._file.flush()
        self._size += len(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _path(self, number: int) -> Path:
        return self._directory / f"history.{number:04d}.jsonl"


#: A client of the etcd at this endpoint, with the certificates of this directory.
Connect = Callable[[str, Path], AbstractAsyncContextManager[Etcd]]


def connect(endpoint: str, pki: Path) -> EtcdClient:
    return EtcdClient([endpoint], ClientTls(pki / "ca.crt", pki / "node.crt", pki / "node.key", NODE_DNS_NAME))


class Observer:
    """One history after the other. `tell` is given what is found, as plain data."""

    def __init__(self, parts: Parts, tell: Callable[[dict[str, object]], None], connect_to: Connect = connect) -> None:
        self.history = History()
        self._parts = parts
        self._tell = tell
        self._connect = connect_to
        self._told = 0
        self._voters: list[tuple[str, Path]] = []
        self._turn = 0
        self._epoch: int | None = None
        #: The next snapshot begins a history without a past.
        self._begins_anew = True
        self._has_gap = True
        self._is_lost = False
        self._followed_at = time.monotonic()
        self._finish: Path | None = None
        self.gaps = 0
        #: Revisions that nobody has judged.
        self.torn = 0

    # Commands

    def take(self, command: dict[str, object]) -> None:
        match command:
            case {"voters": list(voters)}:
                self._voters = [(str(endpoint), Path(pki)) for endpoint, pki in voters]
            case {"epoch": str(reason)}:
                self._begins_anew = self._has_gap = True
                self._is_lost = False
                self._parts.write([json.dumps({"epoch": reason})])
            case {"finish": str(file)}:
                self._finish = Path(file)

    # Following

    async def run(self) -> None:
        """Until it has finished."""
        deadline: float | None = None
        while True:
            if self._finish is not None:
                deadline = deadline or time.monotonic() + FINISH_S
                if time.monotonic() > deadline:
                    self._flaw("the instrument", "the end of the history could not be read: no voter answers")
                    return
            if self._voters and not self._is_lost:
                endpoint, pki = self._voters[self._turn % len(self._voters)]
                self._turn += 1
                try:
                    if await self._follow(endpoint, pki):
                        return
                except (StoreError, TimeoutError, OSError):
                    pass
            await asyncio.sleep(PAUSE_S)

    async def _follow(self, endpoint: str, pki: Path) -> bool:
        """Until this voter is silent (raises), or all is read that was to be (True)."""
        async with self._connect(endpoint, pki) as etcd:
            if not await self._is_same_epoch(etcd):
                return False
            if self._has_gap:
                await self._bridge(etcd)
            try:
                return await self._watch(etcd)
            except Compacted:
                self._has_gap = True
                return False

    async def _is_same_epoch(self, etcd: Etcd) -> bool:
        """Whether this is the cluster of which the history is."""
        found = await etcd.range(Range(keys.cluster_epoch()), timeout_s=SILENCE_S)
        epoch = int(found.kvs[0].value) if found.kvs else None
        if self._begins_anew or self._epoch is None:
            self._epoch = epoch
        if epoch == self._epoch and found.revision >= self.history.revision:
            return True
        if epoch == self._epoch and not self._begins_anew:
            self._flaw("NothingLost", f"revision {self.history.revision} was there, and now {found.revision} is")
            self._is_lost = True
        return self._begins_anew

    async def _bridge(self, etcd: Etcd) -> None:
        everything = Range(EVERYTHING.key, EVERYTHING.range_end)
        found = await etcd.range(everything, timeout_s=4 * SILENCE_S)
        if self._begins_anew:
            self.history.begin_anew(found.revision, found.kvs)
        else:
            torn = found.revision - self.history.revision
            silent_s = time.monotonic() - self._followed_at
            self.gaps += 1
            self.torn += torn
            self._tell({"gap": f"{torn} revisions in {silent_s:.0f} s were compacted before they could be read"})
            self.history.skip_to(found.revision, found.kvs, may_have_forgotten=silent_s > KEEP_S)
        self._parts.write([json.dumps({"snapshot": found.revision, "keys": len(found.kvs)})])
        self._begins_anew = self._has_gap = False
        self._note()

    async def _watch(self, etcd: Etcd) -> bool:
        last = 0
        if self._finish is not None:
            last = (await etcd.range(Range(keys.cluster_epoch()), timeout_s=SILENCE_S)).revision
        start = self.history.revision + 1
        async with etcd.watch([EVERYTHING], start_revision=start, timeout_s=SILENCE_S) as batches:
            while not (last and self.history.revision >= last):
                async with asyncio.timeout(SILENCE_S):
                    batch = await anext(batches)
                if self._has_gap:
                    return False  # a new epoch was announced meanwhile
                self._parts.write(map(_line, batch.events))
                apply_batch(self.history, batch.events)
                self._note()
                if self._finish is not None and not last:
                    return False  # to read how far it has to go
        return True

    def _note(self) -> None:
        """What has been judged is told."""
        self._followed_at = time.monotonic()
        for flaw in self.history.flaws[self._told :]:
            self._tell({"flaw": str(flaw)})
        self._told = len(self.history.flaws)

    def _flaw(self, rule: str, words: str) -> None:
        self._tell({"flaw": f"{rule}: {words}"})

    def finish(self) -> dict[str, object]:
        """The judgement, and what shows only at the end."""
        must_be_known = self._finish.read_text().split() if self._finish is not None else []
        flaws = self.history.finish(must_be_known, expect_ended=True)
        self._note()
        self._parts.close()
        return judgement(self.history, flaws) | {"gaps": self.gaps, "torn": self.torn}


def _line(event: Event) -> str:
    key, kv = event.kv.key, event.kv
    told: dict[str, object] = {"rev": kv.mod_revision, "key": key.decode(errors="replace")}
    if event.is_delete:
        told["deleted"] = True
    elif key.startswith(b"/task/") and not key.startswith(b"/task/status/"):
        try:
            told["story"] = lifecycle.story(codec.decode_task(key, kv.value))
        except RecordCorrupt as error:
            told["story"] = str(error)
    else:
        told["value"] = kv.value.decode(errors="backslashreplace")
    if kv.lease:
        told["lease"] = f"{kv.lease:x}"
    return json.dumps(told)


def _say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


async def observe(directory: Path, commands: TextIO) -> None:
    observer = Observer(Parts(directory), _say)
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in commands:
            loop.call_soon_threadsafe(observer.take, json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    await observer.run()
    _say({"judgement": observer.finish()})


def main(arguments: Sequence[str]) -> int:
    asyncio.run(observe(Path(arguments[0]), sys.stdin))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
