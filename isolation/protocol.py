"""Messages between node and spawner: typed, versioned, one datagram each.

Two SOCK_SEQPACKET pairs. On `requests` the node sends `Launch` (with three descriptors by SCM_RIGHTS: stdin, stdout,
stderr) and gets reports; on `control` it sends what must not wait behind launches: `SetDeadline`, `Fence`, `Stop`,
`Ping`, `Close`. A datagram is JSON, [version, kind, {fields}], but for the two reports that every sandbox has
(`packed.py`). A body longer than INLINE_BYTES travels in a memfd, which then is the first descriptor; the datagram
itself is then MEMFD_MARK and the sandbox's id, so that a loss can be reported.

Both ends come from one checkout, so a different version is an error, not a negotiation. Decoding checks every field:
a bad message raises ProtocolError and harms nobody else.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isolation import packed
from isolation.config import SpawnerConfig
from isolation.errors import ProtocolError
from isolation.spec import (
    BindMount,
    Ended,
    HostReport,
    Limits,
    SandboxSpec,
    SetupFailed,
    Started,
)

VERSION = 3

#: A datagram must fit in the socket's buffer (net.core.wmem_default, 208 KiB) beside others.
INLINE_BYTES = 48 * 1024
#: A task is at most 1 MiB (design, section 7); JSON may escape a byte with six.
BODY_BYTES_MAX = 8 * 1024 * 1024

#: No JSON begins so.
MEMFD_MARK = b"m"

STDIO_COUNT = 3
#: memfd, stdin, stdout, stderr.
FDS_MAX = 4

#: As numbers: combining flags of an enum anew takes as long as the call.
_SEND_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,79}")
_YEAR_S = 366 * 86400.0
#: In nanoseconds it must fit in the 64 bits of the page that every PID 1 reads.
_BOOTTIME_MAX_S = 9e9


@dataclass(frozen=True, slots=True)
class Configure:
    """The first message on `control`; the spawner answers with HostReport on `requests`, or with Refused and exits."""

    config: SpawnerConfig


@dataclass(frozen=True, slots=True)
class Launch:
    spec: SandboxSpec


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """CLOCK_BOOTTIME seconds; at this instant every sandbox is frozen, unless a later one came before."""

    boottime_s: float


@dataclass(frozen=True, slots=True)
class Fence:
    """The lease is known to be lost: kill everything, and start nothing more until a later deadline comes."""


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM to the command's process group, SIGKILL to the sandbox after grace_s; 0 kills at once."""

    id: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered at once, on `requests`, by Pong with the same number."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    number: int


@dataclass(frozen=True, slots=True)
class Close:
    """Kill everything, clean up, exit."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that could not be read or made no sense; nothing was done for it."""

    detail: str


Request = Configure | Launch | SetDeadline | Fence | Stop | Ping | Close
Report = HostReport | Started | SetupFailed | Ended | Pong | Refused
Message = Request | Report


def encode(message: Message) -> bytes:
    if isinstance(message, Started):
        return packed.pack_started(message, VERSION)
    if isinstance(message, Ended):
        return packed.pack_ended(message, VERSION)
    if isinstance(message, Launch):
        fields = {"spec": _spec_fields(message.spec)}
    elif isinstance(message, Configure):
        fields = {"config": _config_fields(message.config)}
    else:
        fields = asdict(message)
    return _ENCODER.encode([VERSION, type(message).__name__, fields]).encode()


_ENCODER = json.JSONEncoder(separators=(",", ":"))


def decode(data: bytes) -> Message:
    """Raises ProtocolError where the bytes are not a message of this version with sound values."""
    if data.startswith((packed.STARTED_MARK, packed.ENDED_MARK)):
        return packed.unpack(data, VERSION, is_id)
    try:
        # Decoded here: the module guesses at other encodings, whose codecs the spawner could not load any more.
        version, kind, fields = json.loads(data.decode())
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    if version != VERSION:
        raise ProtocolError(f"protocol version {version!r}, this end speaks {VERSION}")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None or not isinstance(fields, dict):
        raise ProtocolError(f"no such message: {kind!r}")
    try:
        return reader(_Fields(fields))
    except KeyError as error:
        raise ProtocolError(f"{kind}: field {error} is missing") from None


def find_id(data: bytes) -> str | None:
    """The sandbox that a request is about, as far as it can be read at all."""
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, RecursionError):
        found = data[1:].decode() if data.startswith(MEMFD_MARK) else json.loads(data.decode())[2]["spec"]["id"]
        if isinstance(found, str) and is_id(found):
            return found
    return None


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


class _Fields:
    """Checked access to the fields of one JSON object."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        value = self._fields[name]
        if not isinstance(value, str) or "\0" in value:
            raise ProtocolError(f"{name} must be a string without NUL")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._fields[name] is None else self.text(name)

    def id(self, name: str = "id") -> str:
        value = self.text(name)
        if not _ID.fullmatch(value):
            raise ProtocolError(f"{name} must be 1 to 80 of A-Z a-z 0-9 . - and start with a letter or digit")
        return value

    def flag(self, name: str) -> bool:
        value = self._fields[name]
        if not isinstance(value, bool):
            raise ProtocolError(f"{name} must be true or false")
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self._fields[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ProtocolError(f"{name} must be a whole number from {low} to {high}")
        return value

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        return None if self._fields[name] is None else self.integer(name, low, high)

    def number(self, name: str, low: float, high: float) -> float:
        value = self._fields[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ProtocolError(f"{name} must be a number from {low} to {high}")
        return float(value)

    def optional_number(self, name: str, low: float, high: float) -> float | None:
        return None if self._fields[name] is None else self.number(name, low, high)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._fields[name]
        if not isinstance(values, list) or not all(isinstance(v, str) and "\0" not in v for v in values):
            raise ProtocolError(f"{name} must be a list of strings without NUL")
        return tuple(values)

    def objects(self, name: str) -> list[_Fields]:
        values = self._fields[name]
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise ProtocolError(f"{name} must be a list of objects")
        return [_Fields(v) for v in values]

    def object(self, name: str) -> _Fields:
        value = self._fields[name]
        if not isinstance(value, dict):
            raise ProtocolError(f"{name} must be an object")
        return _Fields(value)

    def environment(self, name: str) -> dict[str, str]:
        values = self._fields[name]
        if not isinstance(values, dict):
            raise ProtocolError(f"{name} must be an object of strings")
        for key, value in values.items():
            if not key or "=" in key or "\0" in key or not isinstance(value, str) or "\0" in value:
                raise ProtocolError(f"{name}: {key!r} must be a name without = and NUL, with a string as its value")
        return values


def _spec_fields(spec: SandboxSpec) -> dict[str, Any]:
    limits = spec.limits
    return {
        "id": spec.id,
        "argv": spec.argv,
        "env": dict(spec.env),
        "limits": {
            "cpu": limits.cpu,
            "memory_bytes": limits.memory_bytes,
            "pids": limits.pids,
            "io_read_bytes_per_s": limits.io_read_bytes_per_s,
            "io_write_bytes_per_s": limits.io_write_bytes_per_s,
            "scratch_bytes": limits.scratch_bytes,
        },
        "cwd": spec.cwd,
        "mounts": [{"source": m.source, "target": m.target, "read_only": m.read_only} for m in spec.mounts],
        "host_network": spec.host_network,
        "timeout_s": spec.timeout_s,
        "grace_s": spec.grace_s,
    }


def _read_spec(f: _Fields) -> SandboxSpec:
    argv = f.texts("argv")
    if not argv or not argv[0]:
        raise ProtocolError("argv must begin with the command")
    limits = f.object("limits")
    return SandboxSpec(
        id=f.id(),
        argv=argv,
        env=f.environment("env"),
        limits=Limits(
            cpu=limits.number("cpu", 0.01, 65536),  # 1 ms of each 100 ms is the least that the kernel takes
            memory_bytes=limits.optional_integer("memory_bytes", 1, 2**62),
            pids=limits.integer("pids", 1, 4_000_000),
            io_read_bytes_per_s=limits.optional_integer("io_read_bytes_per_s", 1, 2**62),
            io_write_bytes_per_s=limits.optional_integer("io_write_bytes_per_s", 1, 2**62),
            scratch_bytes=limits.optional_integer("scratch_bytes", 1, 2**62),
        ),
        cwd=f.optional_text("cwd"),
        mounts=_read_mounts(f.objects("mounts")),
        host_network=f.flag("host_network"),
        timeout_s=f.optional_number("timeout_s", 0, 10 * _YEAR_S),
        grace_s=f.number("grace_s", 0, _YEAR_S),
    )


def _read_mounts(objects: list[_Fields]) -> tuple[BindMount, ...]:
    return tuple(BindMount(m.text("source"), m.text("target"), m.flag("read_only")) for m in objects)


_READERS: dict[str, Callable[[_Fields], Message]] = {
    "Configure": lambda f: Configure(_read_config(f.object("config"))),
    "Launch": lambda f: Launch(_read_spec(f.object("spec"))),
    "SetDeadline": lambda f: SetDeadline(f.number("boottime_s", 0, _BOOTTIME_MAX_S)),
    "Fence": lambda _: Fence(),
    "Stop": lambda f: Stop(f.id(), f.number("grace_s", 0, _YEAR_S)),
    "Ping": lambda f: Ping(f.integer("number", 0, 2**62)),
    "Pong": lambda f: Pong(f.integer("number", 0, 2**62)),
    "Close": lambda _: Close(),
    "Refused": lambda f: Refused(f.text("detail")),
    "HostReport": lambda f: HostReport(
        f.integer("cgroup_version", 0, 2), f.texts("not_enforced"), f.integer("pid", 1, 2**31), f.texts("limits")
    ),
    "SetupFailed": lambda f: SetupFailed(
        f.id(), f.text("step"), f.integer("errno", 0, 4095), f.text("subject"), f.text("detail")
    ),
}


def _config_fields(config: SpawnerConfig) -> dict[str, Any]:
    fields = asdict(config)
    fields["scratch_root"] = str(config.scratch_root)
    fields["hidden"] = [str(path) for path in config.hidden]
    fields["lock"] = None if config.lock is None else str(config.lock)
    return fields


def _read_config(f: _Fields) -> SpawnerConfig:
    return SpawnerConfig(
        host_id=f.id("host_id"),
        scratch_root=Path(f.text("scratch_root")),
        scratch_limit_bytes=f.optional_integer("scratch_limit_bytes", 1, 2**62),
        lock=None if (lock := f.optional_text("lock")) is None else Path(lock),
        shares=_read_mounts(f.objects("shares")),
        allow_host_network=f.flag("allow_host_network"),
        hidden=tuple(Path(path) for path in f.texts("hidden")),
        memory_bytes=f.optional_integer("memory_bytes", 1, 2**62),
        uid_base=f.integer("uid_base", 1, 2**32 - 2),
        uid_count=f.integer("uid_count", 1, 1_000_000),
        gid=f.integer("gid", 1, 2**32 - 2),
    )


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Sends one message whole. Raises BlockingIOError when the other end is behind, other OSErrors when it is gone."""
    send_encoded(sock, encode(message), fds, label=message.spec.id if isinstance(message, Launch) else "")


def send_encoded(sock: socket.socket, data: bytes, fds: tuple[int, ...] = (), *, label: str = "") -> None:
    """As `send`, for a message that is encoded already; `label` is the id to name where a large body gets lost."""
    if len(data) <= INLINE_BYTES:
        _send_with_fds(sock, data, fds)
        return
    if len(data) > BODY_BYTES_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes is too large")
    body = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.pwrite(body, data, 0)
        _send_with_fds(sock, MEMFD_MARK + label.encode(), (body, *fds))
    finally:
        os.close(body)


def _send_with_fds(sock: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, _SEND_FLAGS)


@dataclass(frozen=True, slots=True)
class Received:
    """One datagram. `data` is empty when the other end is closed."""

    data: bytes
    fds: tuple[int, ...]
    #: Not 0: what was sent along had no room in this process, for want of descriptors (EMFILE) or memory (ENOMEM);
    #: `fds` is then empty.
    cut_by: int = 0


#: What a body that cannot be read stands for: no message, and not the end of the socket.
_NOTHING = b"?"
_FDS_SPACE = socket.CMSG_SPACE(FDS_MAX * 4)


def receive(sock: socket.socket) -> Received:
    """The next datagram, with its body fetched. Raises BlockingIOError when there is none."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(INLINE_BYTES + 1, _FDS_SPACE, _RECEIVE_FLAGS)
    except ConnectionResetError:  # closed with messages of ours unread
        return Received(b"", ())
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    in_memfd = data.startswith(MEMFD_MARK)
    if flags & socket.MSG_CTRUNC or (in_memfd and not fds):
        close_all(tuple(fds))
        return Received(data, (), cut_by=errno.EMFILE)
    if not in_memfd:
        return Received(data, tuple(fds))
    body = fds.pop(0)
    try:
        size = min(os.fstat(body).st_size, BODY_BYTES_MAX)
        return Received(os.pread(body, size, 0) or _NOTHING, tuple(fds))
    except OSError:  # no memfd: a directory, a socket
        return Received(_NOTHING, tuple(fds))
    except MemoryError:
        close_all(tuple(fds))
        return Received(data, (), cut_by=errno.ENOMEM)
    finally:
        os.close(body)


def close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:  # of what was written through it, which is not ours to tell
            continue
