"""The two reports that every sandbox has, `Started` and `Ended`, in a form that costs little to make and to read.

A node reads them on the loop that does everything else, and the spawner makes them between two sandboxes: as JSON, they
were a quarter of its work. First byte: which one (no JSON begins so); second: the protocol's version; then numbers of
fixed size, then texts, the last of which may be long. All other messages are JSON (`protocol.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from isolation.errors import ProtocolError
from isolation.spec import Ended, SandboxUsage, Started

STARTED_MARK = b"S"
ENDED_MARK = b"E"

#: Mark, version, pid, started_at; then the id.
_STARTED = struct.Struct("=cBId")
#: Mark, version, exit code or -1, signal or -1, out of memory, started_at, finished_at; cpu_s, wall_s, peak, read and
#: written bytes; then id, ended_by and detail with a zero byte between them.
_ENDED = struct.Struct("=cBhh?ddddQQQ")
_NONE = -1
_SECONDS_MAX = 1e12


def pack_started(report: Started, version: int) -> bytes:
    return _STARTED.pack(STARTED_MARK, version, report.pid, report.started_at) + report.id.encode()


def pack_ended(report: Ended, version: int) -> bytes:
    usage = report.usage
    numbers = _ENDED.pack(
        ENDED_MARK,
        version,
        _NONE if report.exit_code is None else report.exit_code,
        _NONE if report.signal is None else report.signal,
        report.out_of_memory,
        report.started_at,
        report.finished_at,
        usage.cpu_s,
        usage.wall_s,
        usage.memory_peak_bytes,
        usage.io_read_bytes,
        usage.io_write_bytes,
    )
    return numbers + f"{report.id}\0{report.ended_by}\0{report.detail}".encode()


def unpack(data: bytes, version: int, is_id: Callable[[str], bool]) -> Started | Ended:
    """Raises ProtocolError where this is no report of this version with sound values."""
    try:
        report, theirs = (_unpack_started if data.startswith(STARTED_MARK) else _unpack_ended)(data)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ProtocolError(f"not a packed report: {error}") from None
    if theirs != version:
        raise ProtocolError(f"protocol version {theirs}, this end speaks {version}")
    if not is_id(report.id):
        raise ProtocolError("id must be 1 to 80 of A-Z a-z 0-9 . - and start with a letter or digit")
    return report


def _unpack_started(data: bytes) -> tuple[Started, int]:
    _, version, pid, started_at = _STARTED.unpack_from(data)
    if not (pid and 0 <= started_at <= _SECONDS_MAX):
        raise ValueError("a number is out of range")
    return Started(data[_STARTED.size :].decode(), pid, started_at), version


def _unpack_ended(data: bytes) -> tuple[Ended, int]:
    _, version, code, number, is_oom, started_at, finished_at, cpu_s, wall_s, peak, read, written = _ENDED.unpack_from(
        data
    )
    sandbox_id, ended_by, detail = data[_ENDED.size :].decode().split("\0")
    if not all(0 <= seconds <= _SECONDS_MAX for seconds in (started_at, finished_at, cpu_s, wall_s)):
        raise ValueError("a number of seconds is out of range")
    if not (_NONE <= code <= 255 and (number == _NONE or 1 <= number <= 127)):
        raise ValueError("exit code or signal is out of range")
    ended = Ended(
        id=sandbox_id,
        exit_code=None if code == _NONE else code,
        signal=None if number == _NONE else number,
        out_of_memory=is_oom,
        ended_by=ended_by,
        started_at=started_at,
        finished_at=finished_at,
        usage=SandboxUsage(cpu_s, peak, read, written, wall_s),
        detail=detail,
    )
    return ended, version
