"""What the values of settings may be: text, or a TOML value of the type that fits, to a value of ours.

Each parser raises ValueError in words that say what would be right; `node/config.py` adds which setting it was and
where it came from. Nothing here looks at the host but `existing`, which checks that a path is there.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isolation.config import FIRST_UID, UID_COUNT, problem_of_uids
from node.units import format_duration, format_size, parse_bool, parse_duration, parse_size

#: Of the API, where nothing else is said; etcd's ports are this plus 1 and 2 where they are free.
DEFAULT_API_PORT: Final = 7400

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Share:
    """A host path that every task of this node sees at the same place."""

    path: str
    read_only: bool = True

    def __str__(self) -> str:
        return f"{self.path}:{'ro' if self.read_only else 'rw'}"


@dataclass(frozen=True, slots=True)
class Uids:
    """The user ids that tasks run as, each task as one of its own. The first is also the group of all tasks."""

    first: int = FIRST_UID
    count: int = UID_COUNT

    def __str__(self) -> str:
        return f"{self.first}:{self.count}"


DEFAULT_UIDS: Final = Uids()


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the TCP port is. Port 0: any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, not {value!r}")  # noqa: TRY004 (one kind of error for all wrong values)
    if "\0" in value or "\n" in value:
        raise ValueError("may hold neither a zero byte nor a line break")
    return value


def parse_name(value: object) -> str:
    name = parse_text(value).strip()
    if not name or len(name) > 64 or not name.isprintable():
        raise ValueError(f"{name!r} is not a name: 1 to 64 printable characters")
    return name


def parse_path(value: object) -> Path:
    text = os.fspath(value) if isinstance(value, Path) else parse_text(value)
    if not text:
        raise ValueError("a path may not be empty")
    return Path(text).expanduser().absolute()


def parse_boolean(value: object) -> bool:
    return value if isinstance(value, bool) else parse_bool(parse_text(value))


def _number(value: object, parse: Callable[[str], float]) -> float:
    # bool is an int to Python, but `cpu = true` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number, not {value!r}")  # noqa: TRY004 (as in parse_text)
    try:
        number = parse(value) if isinstance(value, str) else float(value)
    except ValueError as error:
        raise ValueError(str(error) if parse is not float else f"{value!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def parse_cpu(value: object) -> float:
    cpu = _number(value, float)
    if not 0 < cpu <= 65_536:
        raise ValueError(f"{value!r} is not a number of CPUs: more than 0, such as 4 or 0.5")
    return cpu


def parse_size_from(minimum: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        size = value if isinstance(value, int) and not isinstance(value, bool) else parse_size(parse_text(value))
        if size < minimum:
            raise ValueError(f"{value!r} is too small: at least {format_size(minimum)}")
        return size

    return parse


def parse_duration_from(minimum_s: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        duration_s = _number(value, parse_duration)
        if duration_s < minimum_s:
            raise ValueError(f"{value!r} is too short: at least {format_duration(minimum_s)}")
        return duration_s

    return parse


def parse_count_from(minimum: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"expected a whole number, not {value!r}")  # noqa: TRY004 (as in parse_text)
        try:
            count = int(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a whole number") from None
        if count < minimum:
            raise ValueError(f"{value!r} is too small: at least {minimum}")
        return count

    return parse


def parse_uids(value: object) -> Uids:
    """`FIRST:COUNT`. Raises ValueError."""
    text = parse_text(value)
    first, separator, count = text.partition(":")
    if not (separator and first.isdecimal() and count.isdecimal()):
        raise ValueError(f"{text!r} is not FIRST:COUNT, such as {DEFAULT_UIDS}")
    uids = Uids(int(first), int(count))
    problem = problem_of_uids(uids.first, uids.count)
    if problem:
        raise ValueError(problem)
    return uids


def parse_log_level(value: object) -> str:
    level = parse_text(value).strip().lower()
    if level not in LOG_LEVELS:
        raise ValueError(f"{value!r} is not one of {', '.join(LOG_LEVELS)}")
    return level


def parse_listen(value: object) -> Listen:
    """`HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    if isinstance(value, Listen):
        return value
    text = parse_text(value).strip()
    host, separator, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, such as [::1]:7400")
    # isdecimal also holds for other scripts' digits; isascii keeps those out.
    if not separator or not host or not (port_text.isascii() and port_text.isdecimal()) or int(port_text) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 192.168.1.10:7400")
    return Listen(host, int(port_text))


def parse_peers(value: object) -> tuple[Listen, ...]:
    """A list of HOST:PORT; one without a port has the default one. Raises ValueError."""
    peers = []
    for item in _items(value):
        text = parse_text(item).strip()
        if text.isascii() and text.isdecimal():
            # inet_aton(3) would take it for an address: 7400 is 0.0.28.232.
            raise ValueError(f"{text!r} is a port without a host: write HOST:PORT, such as 192.168.1.10:7400")
        has_port = text.rpartition("]")[2].count(":") == 1
        peers.append(parse_listen(text if has_port else f"{text}:{DEFAULT_API_PORT}"))
        if peers[-1].port == 0:
            raise ValueError(f"{text!r} is no address of a node: port 0")
    return tuple(dict.fromkeys(peers))


def parse_host(value: object) -> str:
    """A host without a port. Raises ValueError."""
    host = parse_text(value).strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or (":" in host and not _is_address(host)):
        raise ValueError(f"{value!r} is not a host name or an address (without a port: that of listen is used)")
    if _is_address(host) and ipaddress.ip_address(host).is_unspecified:
        raise ValueError(f"{value!r} is the wildcard: give the address that other nodes can reach")
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost is not looked up, and so is not."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_share(value: object) -> Share:
    """`PATH[:ro|rw]`, read-only by default; the path is absolute and there. Raises ValueError."""
    if isinstance(value, Share):
        return value
    text = parse_text(value)
    path, separator, mode = text.rpartition(":")
    if not separator or mode not in ("ro", "rw"):
        # A colon may be part of the path.
        path, mode = text, "ro"
    return Share(_existing(path), read_only=mode == "ro")


def _existing(text: str) -> str:
    """An absolute path without `..`, `.` or doubled slashes, so that prefixes can be compared as text."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    path = os.path.normpath(text)
    # POSIX lets // stand for something else than /, and normpath keeps it.
    path = "/" + path.lstrip("/")
    if path == "/":
        raise ValueError("the whole root cannot be given: tasks see it read-only as it is")
    try:
        Path(path).stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return path


def _items(value: object) -> Sequence[object]:
    """A list as it is; text (from the environment) is split at commas."""
    if isinstance(value, str):
        return [item for item in (part.strip() for part in value.split(",")) if item]
    if isinstance(value, list | tuple):
        return value
    raise ValueError(f"expected a list of texts, not {value!r}")


def parse_shares(value: object) -> tuple[Share, ...]:
    shares: dict[str, Share] = {}
    for share in map(parse_share, _items(value)):
        known = shares.setdefault(share.path, share)
        if known != share:
            raise ValueError(f"{share.path} is shared both ro and rw")
    return tuple(shares.values())


def parse_prefixes(value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_existing(parse_text(item)) for item in _items(value)))
