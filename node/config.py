"""Settings of a node: where each may come from, what it means, and what it may be.

Precedence, per setting: flag, then environment (`PILFER_...`), then one TOML file, then default. The file is that of
`--config` or `PILFER_CONFIG`; else `node.toml` in the data directory; else /etc/pilfer/node.toml. There is one file:
files are not merged, so that the place to look is always one.

Every setting keeps its origin, since "where does this value come from" is the first question about a wrong one;
every error names the setting and that origin. `_OPTIONS` is the one table: a setting that is not in it does not
exist, and an unknown key of a file is an error.

Must not do: look at what the host has (cpu and memory that nobody set stay None until `node/load.py` resolves them),
or make anything on disk. It only checks that shared paths are there, while it still knows who asked for them.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from node.config_values import (
    DEFAULT_UIDS,
    Listen,
    Share,
    Uids,
    parse_boolean,
    parse_count_from,
    parse_cpu,
    parse_duration_from,
    parse_host,
    parse_listen,
    parse_log_level,
    parse_name,
    parse_path,
    parse_peers,
    parse_prefixes,
    parse_shares,
    parse_size_from,
    parse_uids,
)
from node.units import format_duration, format_size, parse_duration, parse_size

SYSTEM_CONFIG_FILE: Final = Path("/etc/pilfer/node.toml")
CONFIG_FILE_NAME: Final = "node.toml"
SYSTEM_DATA_DIR: Final = Path("/var/lib/pilfer")
ENV_PREFIX: Final = "PILFER_"
_CONFIG_VARIABLE: Final = ENV_PREFIX + "CONFIG"

#: etcd's floor: ceil(1.5 x election timeout of 1 s); a shorter wish would silently become this.
LEASE_TTL_MIN_S: Final = 2.0
#: Below this a sandbox does not even start a shell reliably.
MEMORY_MIN_BYTES: Final = 16 * 2**20
#: Less than what a follower may be behind, and the log would be all gap.
LOG_LIMIT_MIN_BYTES: Final = 2**20
SCRATCH_LIMIT_MIN_BYTES: Final = 2**20
#: etcd refuses to be useful much below this; its own default is 2 GiB, its advised maximum 8 GiB.
ETCD_QUOTA_MIN_BYTES: Final = 64 * 2**20


class ConfigError(Exception):
    """A setting that cannot be used; the text names it, its origin and what would be right."""


@dataclass(frozen=True)
class Settings:
    """All settings of one node, checked. `origins` tells for each field where its value came from."""

    #: The unix socket, pki, etcd's data, logs: everything that this node keeps.
    data_dir: Path
    #: What people call this node; need not be unique.
    name: str
    #: None: no TCP port, the unix socket alone.
    listen: Listen | None = None
    #: The host by which the other nodes reach this one, where `listen` is a wildcard or behind a translation.
    advertise: str | None = None
    #: Nodes of the cluster that is to be joined, or was. Only a start without them founds a cluster.
    peers: tuple[Listen, ...] = ()
    #: Holds the join token; needed for the first start with `peers`.
    token_file: Path | None = None
    #: Plain TCP without TLS; only ever true with a loopback address or without one.
    insecure: bool = False
    #: None: what the host has, or what the cgroup that the node was started in allows.
    cpu: float | None = None
    #: None: most of what the host has.
    memory_bytes: int | None = None
    shares: tuple[Share, ...] = ()
    #: Prefixes below which a task's own mounts may take their source, besides the shares. May be written to.
    allow_mounts: tuple[str, ...] = ()
    #: Tasks may ask for the host's network.
    allow_host_network: bool = False
    #: Whom tasks run as, where the node runs as root.
    uids: Uids = DEFAULT_UIDS
    #: Kept of the output of one attempt, both streams together; of what is longer, the beginning and the end.
    log_limit_bytes: int = 256 * 2**20
    #: The most that a task may keep in its scratch directory. None: a quarter of the file system that it is on.
    scratch_limit_bytes: int | None = None
    lease_ttl_s: float = 5.0
    #: None: searched for beside the interpreter and on PATH.
    etcd_binary: Path | None = None
    etcd_quota_bytes: int = 8 * 2**30
    compaction_interval_s: float = 30.0
    #: Between two snapshots of the cluster's data on this host's disk; 0: none.
    snapshot_interval_s: float = 600.0
    #: Ended tasks older than this are deleted, with their logs.
    retention_age_s: float = 7 * 86_400.0
    #: Of ended tasks more than this, the oldest are deleted, with their logs.
    retention_count: int = 100_000
    #: Queued tasks that the claimer looks at.
    queue_window: int = 10_000
    #: How long an ordered stop waits for tasks that may not be restarted before it ends them too.
    stop_wait_s: float = 10.0
    log_level: str = "info"
    #: The file that was read; None where there was none.
    config_file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


# --- the table


@dataclass(frozen=True, slots=True)
class _Option:
    #: As in `--key` and a TOML file, with dashes and underscores as custom has it, and `PILFER_KEY`.
    key: str
    #: Of Settings.
    field: str
    parse: Callable[[object], object]

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.key.upper()


_OPTIONS: Final = (
    _Option("data_dir", "data_dir", parse_path),
    _Option("name", "name", parse_name),
    _Option("listen", "listen", parse_listen),
    _Option("advertise", "advertise", parse_host),
    _Option("peers", "peers", parse_peers),
    _Option("token_file", "token_file", parse_path),
    _Option("insecure", "insecure", parse_boolean),
    _Option("cpu", "cpu", parse_cpu),
    _Option("memory", "memory_bytes", parse_size_from(MEMORY_MIN_BYTES)),
    _Option("share", "shares", parse_shares),
    _Option("allow_mount", "allow_mounts", parse_prefixes),
    _Option("allow_host_network", "allow_host_network", parse_boolean),
    _Option("uids", "uids", parse_uids),
    _Option("log_limit", "log_limit_bytes", parse_size_from(LOG_LIMIT_MIN_BYTES)),
    _Option("scratch_limit", "scratch_limit_bytes", parse_size_from(SCRATCH_LIMIT_MIN_BYTES)),
    _Option("lease_ttl", "lease_ttl_s", parse_duration_from(LEASE_TTL_MIN_S)),
    _Option("etcd", "etcd_binary", parse_path),
    _Option("etcd_quota", "etcd_quota_bytes", parse_size_from(ETCD_QUOTA_MIN_BYTES)),
    _Option("compaction_interval", "compaction_interval_s", parse_duration_from(1.0)),
    _Option("snapshot_interval", "snapshot_interval_s", parse_duration_from(0.0)),
    _Option("retention_age", "retention_age_s", parse_duration_from(1.0)),
    _Option("retention_count", "retention_count", parse_count_from(0)),
    _Option("queue_window", "queue_window", parse_count_from(1)),
    _Option("stop_wait", "stop_wait_s", parse_duration_from(0.0)),
    _Option("log_level", "log_level", parse_log_level),
)
_BY_KEY: Final = {option.key: option for option in _OPTIONS}


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    origin: str


def default_data_dir(environ: Mapping[str, str] = os.environ, *, uid: int | None = None) -> Path:
    """/var/lib/pilfer for root, else `pilfer` in the XDG data directory (a relative one is ignored, as XDG says)."""
    if (os.geteuid() if uid is None else uid) == 0:
        return SYSTEM_DATA_DIR
    base = environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "pilfer"


def load_settings(
    flags: Mapping[str, object | None],
    environ: Mapping[str, str] = os.environ,
    *,
    system_file: Path = SYSTEM_CONFIG_FILE,
) -> Settings:
    """The settings of a node that is started with `flags`.

    Keys of `flags` are those of the table (`data_dir`, `cpu`, `memory`, `share`, ...) and `config`; None and an empty
    list mean that the flag was not given. Raises ConfigError.
    """
    unknown = sorted(flags.keys() - _BY_KEY.keys() - {"config"})
    if unknown:
        raise ConfigError(f"no such setting: {', '.join(unknown)}")
    given = {key: found for key in _BY_KEY if (found := _from_call(key, flags, environ)) is not None}
    data_dir = Path(str(_parse(_BY_KEY["data_dir"], given["data_dir"]))) if "data_dir" in given else None
    own_file = (data_dir or default_data_dir(environ)) / CONFIG_FILE_NAME
    file = _find_config_file(flags, environ, (own_file, system_file))
    if file is not None:
        content = _read_file(file)
        if file == own_file and "data_dir" in content:
            raise ConfigError(f"{file}: data_dir cannot be set in the data directory's own file")
        for key, value in content.items():
            given.setdefault(key, _Given(value, f"{key} in {file}"))
    values = {key: _parse(_BY_KEY[key], found) for key, found in given.items()}
    values.setdefault("data_dir", default_data_dir(environ))
    values.setdefault("name", socket.gethostname() or "node")
    origins = {option.field: given[option.key].origin if option.key in given else "default" for option in _OPTIONS}
    fields: dict[str, Any] = {_BY_KEY[key].field: value for key, value in values.items()}
    settings = Settings(**fields, config_file=file, origins=MappingProxyType(origins))
    _check_together(settings)
    return settings


def _from_call(key: str, flags: Mapping[str, object | None], environ: Mapping[str, str]) -> _Given | None:
    option = _BY_KEY[key]
    flag = flags.get(key)
    if flag is not None and flag not in ((), []):
        return _Given(flag, f"flag {option.flag}")
    # An empty variable counts as unset: that is how it is switched off in a unit file or a shell.
    text = environ.get(option.variable, "")
    return _Given(text, option.variable) if text else None


def _parse(option: _Option, given: _Given) -> object:
    try:
        return option.parse(given.value)
    except ValueError as error:
        raise ConfigError(f"{option.key} ({given.origin}): {error}") from None


def _find_config_file(
    flags: Mapping[str, object | None], environ: Mapping[str, str], candidates: Sequence[Path]
) -> Path | None:
    """The file that was asked for, which must be there; else the first of the candidates that is there."""
    for named, origin in ((flags.get("config"), "flag --config"), (environ.get(_CONFIG_VARIABLE), _CONFIG_VARIABLE)):
        if named:
            path = Path(str(named)).expanduser().absolute()
            if not path.is_file():
                raise ConfigError(f"config ({origin}): {path} is not there, or not a file")
            return path
    for path in candidates:
        try:
            # stat, not is_file: one that may not be looked at is an error, not absent.
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        return path
    return None


def _read_file(path: Path) -> Mapping[str, object]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    known = {key.replace("-", "_"): value for key, value in content.items()}
    if len(known) != len(content):
        raise ConfigError(f"{path}: a setting stands there twice, once with - and once with _")
    unknown = sorted(known.keys() - _BY_KEY.keys())
    if unknown:
        raise ConfigError(f"{path}: no such setting: {', '.join(unknown)}; there are {', '.join(sorted(_BY_KEY))}")
    return known


def _check_together(settings: Settings) -> None:
    if settings.insecure and settings.listen is not None and not settings.listen.is_loopback:
        raise ConfigError(
            f"insecure ({settings.origins['insecure']}) is refused with listen {settings.listen} "
            f"({settings.origins['listen']}): anybody who reaches that address could run commands here. "
            "Leave insecure out (TLS needs no preparation), or listen on 127.0.0.1"
        )
    _check_peers(settings)


def _check_peers(settings: Settings) -> None:
    if settings.peers and settings.listen is None:
        raise ConfigError(
            f"peers ({settings.origins['peers']}) needs listen: the other nodes have to reach this one. "
            "Give --listen HOST:PORT with an address of this host"
        )
    if settings.peers and settings.insecure:
        raise ConfigError(
            f"peers ({settings.origins['peers']}) is refused with insecure ({settings.origins['insecure']}): "
            "nodes of a cluster know each other by their certificates. Leave insecure out"
        )


def describe(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """For `node config`: (key as in a file, value as one would write it, origin), in the order of the table."""
    for option in _OPTIONS:
        yield option.key, _printed(option, getattr(settings, option.field)), settings.origins[option.field]


def _printed(option: _Option, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, int) and option.field.endswith("_bytes"):
        # What is printed can be written into a file, and must mean the same there.
        return text if parse_size(text := format_size(value)) == value else str(value)
    if isinstance(value, float) and option.field.endswith("_s"):
        return text if parse_duration(text := format_duration(value)) == value else f"{value:g}s"
    return f"{value:g}" if isinstance(value, float) else str(value)
