"""Pages of tasks: all by id, or those of one status.

Keys first, then the records of a page in portions, so that a page of large records ends early instead of filling the
memory. Each page is as things are when it is read: a task that comes, goes or moves between two pages may be in one of
them or in none, never in two.

etcd counts the whole range of a request whatever its limit (measured: 12 ms at 150,000 keys, 310 ms at a million), so a
walk by limit alone is quadratic; and in descending order it reads the whole range, values too, before it takes the
limit. So a page asks for a narrow range: as wide as the last page was, and wider while it gives too little; downwards
it counts first, and halves what is too much. Positions are numbers for that: an id's 128 bits, before them the second
in which a finished task ended. Running tasks are few, and sorted by node: they are listed whole.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from etcd import codec, keys
from etcd.errors import RecordCorrupt
from etcd.port import Etcd, Range, RangeResult
from node.core.model import Status, Task

#: Bytes of records after which a page ends, however few they are.
_PAGE_BYTES = 8 << 20
#: Tasks looked at for one page of a filtered listing.
FILTERED_AT_ONCE = 1000
#: Records read in one portion: bounded, since each may be a MiB.
_PORTION = 50
#: Width of one second of UUIDv7s: a millisecond is 80 bits.
_ID_SECOND = 1000 << 80
_ID_SPACE = 1 << 128
_EPOCH_SPACE = keys.EPOCH_END << 128
#: How much wider the next range is when one gave too little.
_WIDER = 4
#: Id and position.
_Found: TypeAlias = tuple[str, int]

#: Reads several points at one revision.
ReadPoints = Callable[[Sequence[Range]], Awaitable[tuple[RangeResult, ...]]]


class BadPageToken(ValueError):  # noqa: N818  (named for what is the case, as the errors of this package)
    """Not a token that a page of this listing gave."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some tasks, in order."""

    tasks: tuple[Task, ...]
    #: For the next page; empty at the end.
    next_token: str
    #: Records that cannot be read, in words: left out, and to be told.
    corrupt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where the next page begins."""

    #: The last position given.
    after: int
    #: How wide a range the next page asks for first.
    width: int

    def token(self) -> str:
        return base64.urlsafe_b64encode(f"{self.after:x}.{self.width:x}".encode()).decode()


def _cursor(token: str) -> _Cursor:
    try:
        after, width = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").split(".")
        cursor = _Cursor(int(after, 16), int(width, 16))
    except (ValueError, binascii.Error) as error:
        raise BadPageToken("not a page token of this listing") from error
    if not 0 <= cursor.after <= _EPOCH_SPACE or not 0 < cursor.width <= _EPOCH_SPACE:
        raise BadPageToken("not a page token of this listing")
    return cursor


@dataclass(frozen=True, slots=True)
class _Axis:
    """Keys as positions on a line, in the order of the keys."""

    prefix: bytes
    #: Positions are below this.
    space: int

    #: How wide a second is.
    second: int

    def at(self, time_s: float) -> int:
        """The position of a Unix time."""
        return int(max(time_s, 0.0) * 1000) * (self.second // 1000)

    def key(self, position: int) -> bytes:
        """The first key at or after this position."""
        if position >= self.space:
            # Beyond all ids, and before the status keys, which the records' prefix covers too.
            return self.prefix + b"g"
        epoch_s, number = divmod(position, _ID_SPACE)
        text = f"{number:032x}"
        uuid = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()
        return self.prefix + (uuid if self.space == _ID_SPACE else b"%012d/%b" % (epoch_s, uuid))

    def position(self, key: bytes) -> int:
        rest = key[len(self.prefix) :]
        if self.space == _ID_SPACE:
            return int(rest.replace(b"-", b""), 16)
        return int(rest[: keys.EPOCH_DIGITS]) * _ID_SPACE + int(rest[keys.EPOCH_DIGITS + 1 :].replace(b"-", b""), 16)


def _axis(status: Status | None) -> _Axis:
    if status is None:
        return _Axis(b"/task/", _ID_SPACE, _ID_SECOND)
    if status is Status.QUEUED:
        return _Axis(keys.queued().key, _ID_SPACE, _ID_SECOND)
    return _Axis(keys.terminal(status).key, _EPOCH_SPACE, _ID_SPACE)


async def list_page(
    etcd: Etcd,
    read: ReadPoints,
    *,
    status: Status | None,
    page_size: int,
    page_token: str,
    newest_first: bool,
    now: float,
    timeout_s: float,
    wanted: Callable[[Task], bool] | None = None,
) -> Page:
    """At most page_size tasks after those of the page that gave the token, of this status where one is given, and
    those alone that are wanted: then FILTERED_AT_ONCE are looked at for one page.

    Sorted by id, which for UUIDv7 is the order of submission; finished tasks of one status by the time of their end,
    then id. Fewer than page_size, or none, does not mean the end: an empty next_token does. now: Unix seconds, where
    to look for the newest first. Raises BadPageToken.
    """
    cursor = _cursor(page_token) if page_token else None
    looked_at = page_size if wanted is None else max(page_size, FILTERED_AT_ONCE)
    if status is Status.RUNNING:
        found, following = await _running_ids(etcd, cursor, looked_at, timeout_s, newest_first=newest_first)
    else:
        walk = _Walk(etcd, _axis(status), cursor, looked_at, timeout_s)
        found = await (walk.down(now) if newest_first else walk.up())
        following = None
        if len(found) >= looked_at:
            # Twice the width of this page: dense or thin, the next one is likely to be as dense.
            following = _Cursor(found[-1][1], max(1, 2 * abs(found[-1][1] - found[0][1])))
    tasks: list[Task] = []
    corrupt: list[str] = []
    size = last = 0
    for start in range(0, len(found), _PORTION):
        portion = found[start : start + _PORTION]
        records = await read([Range(keys.task(task_id)) for task_id, _ in portion])
        for (_, position), result in zip(portion, records, strict=True):
            if len(tasks) >= page_size or size >= _PAGE_BYTES:
                # Full before the end of what was looked up: the next page begins here.
                width = following.width if following else 1 << 96
                return Page(tuple(tasks), _Cursor(last, width).token(), tuple(corrupt))
            last = position
            for kv in result.kvs:
                size += len(kv.value)
                try:
                    task = codec.decode_task(kv.key, kv.value)
                except RecordCorrupt as error:
                    corrupt.append(str(error))
                    continue
                if (status is None or task.status is status) and (wanted is None or wanted(task)):
                    tasks.append(task)
    return Page(tuple(tasks), following.token() if following else "", tuple(corrupt))


@dataclass(frozen=True, slots=True)
class _Walk:
    """One page's way along an axis."""

    etcd: Etcd
    axis: _Axis
    cursor: _Cursor | None
    page_size: int
    timeout_s: float

    async def up(self) -> list[_Found]:
        """The first positions after the cursor."""
        found: list[_Found] = []
        low = self.cursor.after + 1 if self.cursor else 0
        width = self.cursor.width if self.cursor else self.axis.space
        while low < self.axis.space and len(found) < self.page_size:
            end = min(self.axis.space, low + width)
            result = await self._range(low, end, limit=self.page_size - len(found))
            found += self._read(result)
            low = end
            width *= _WIDER
        return found

    async def down(self, now: float) -> list[_Found]:
        """The last positions before the cursor. Without one, those made or ended after `now` come first, then back
        from there in growing steps."""
        found: list[_Found] = []
        high = self.cursor.after if self.cursor else self.axis.space
        width = self.cursor.width if self.cursor else self.axis.space - min(self.axis.at(now), self.axis.space - 1)
        # Between here and `high` there is known to be too much for one request.
        floor: int | None = None
        while high > 0 and len(found) < self.page_size:
            low = (floor + high) // 2 if floor is not None else max(0, high - width)
            count = (await self._range(low, high, count_only=True)).count
            if count > 2 * self.page_size and high - low > 1:
                floor = low
                continue
            if count:
                found += self._read(await self._range(low, high, descending=True))[: self.page_size - len(found)]
            if floor is None:
                # From the time of now back by one second, or on from the last page's width.
                width = self.axis.second if self.cursor is None and high == self.axis.space else width * _WIDER
            high = low
            if floor is not None and high - floor <= 1:
                floor = None
        return found

    async def _range(
        self, low: int, high: int, *, limit: int = 0, count_only: bool = False, descending: bool = False
    ) -> RangeResult:
        """The keys of these positions, `high` excluded."""
        op = Range(
            self.axis.key(low),
            self.axis.key(high),
            limit=limit,
            keys_only=not count_only,
            count_only=count_only,
            descending=descending,
        )
        return await self.etcd.range(op, timeout_s=self.timeout_s)

    def _read(self, result: RangeResult) -> list[_Found]:
        found: list[_Found] = []
        for kv in result.kvs:
            try:
                found.append((_id_of(self.axis, kv.key), self.axis.position(kv.key)))
            except RecordCorrupt:
                continue  # a stranger's key
        return found


def _id_of(axis: _Axis, key: bytes) -> str:
    if axis.prefix == b"/task/":
        return keys.parse_task(key)
    return keys.parse_index_key(key).task_id


async def _running_ids(
    etcd: Etcd, cursor: _Cursor | None, page_size: int, timeout_s: float, *, newest_first: bool
) -> tuple[list[_Found], _Cursor | None]:
    everywhere = keys.running()
    result = await etcd.range(Range(everywhere.key, everywhere.range_end, keys_only=True), timeout_s=timeout_s)
    ids = [keys.parse_index_key(kv.key).task_id for kv in result.kvs]
    found = sorted(((task_id, int(task_id.replace("-", ""), 16)) for task_id in ids), reverse=newest_first)
    if cursor is not None:
        found = [one for one in found if (one[1] < cursor.after if newest_first else one[1] > cursor.after)]
    page = found[:page_size]
    return page, (_Cursor(page[-1][1], 1) if len(found) > len(page) else None)
