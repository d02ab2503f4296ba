"""The flags that set a node's settings, shared by start, config and env.

Nothing is parsed here: `node/config.py` does it for flags, environment and file alike, and its errors name the origin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from node.cli.failures import ExitCode, Failure

if TYPE_CHECKING:
    from node.config import Settings

R = TypeVar("R")

_FLAGS: tuple[tuple[str, dict[str, object]], ...] = (
    ("--listen", {"metavar": "HOST:PORT", "help": "A TCP port, with mutual TLS; the unix socket is always there."}),
    ("--peers", {"metavar": "HOST:PORT,...", "help": "Join the cluster of these nodes; any of them is enough."}),
    (
        "--token-file",
        {"metavar": "FILE", "help": "Holds the join token, see node token create; or PILFER_JOIN_TOKEN."},
    ),
    ("--advertise", {"metavar": "HOST", "help": "How the other nodes reach this one, if not by the host of --listen."}),
    ("--data-dir", {"metavar": "DIR", "help": "Everything the node keeps. Default /var/lib/pilfer, or XDG's."}),
    ("--name", {"metavar": "NAME", "help": "What people call this node. Default: the host's name."}),
    ("--cpu", {"metavar": "N", "help": "CPUs lent to tasks. Default: all."}),
    ("--memory", {"metavar": "SIZE", "help": "Memory lent to tasks. Default: most of it."}),
    ("--share", {"metavar": "PATH[:ro|rw]", "multiple": True, "help": "A host path that every task sees; repeatable."}),
    ("--allow-mount", {"metavar": "PREFIX", "multiple": True, "help": "Where --mount of tasks may take its source."}),
    ("--allow-host-network", {"is_flag": True, "default": None, "help": "Tasks may ask for the host's network."}),
    (
        "--uids",
        {"metavar": "FIRST:COUNT", "help": "User ids of tasks. Default 2046820352:65536."},
    ),
    ("--log-limit", {"metavar": "SIZE", "help": "Kept of one task's output: its beginning and end. Default 256M."}),
    (
        "--scratch-limit",
        {"metavar": "SIZE", "help": "The most in one task's scratch directory. Default: a quarter of its file system."},
    ),
    ("--insecure", {"is_flag": True, "default": None, "help": "Plain TCP; refused beyond loopback."}),
    ("--config", {"metavar": "FILE", "help": "TOML file. Default: node.toml in the data directory, then /etc/pilfer."}),
    ("--lease-ttl", {"metavar": "TIME", "help": "How long a silent node counts as alive. Default 5s, at least 2s."}),
    ("--stop-wait", {"metavar": "TIME", "help": "How long a stop waits for tasks that must not be restarted."}),
    ("--snapshot-interval", {"metavar": "TIME", "help": "Between snapshots of the data. Default 10m; 0: none."}),
    ("--retention-age", {"metavar": "TIME", "help": "Ended tasks are kept so long. Default 7d."}),
    ("--retention-count", {"metavar": "N", "help": "So many ended tasks are kept. Default 100000."}),
    ("--queue-window", {"metavar": "N", "help": "Queued tasks that the node looks at. Default 10000."}),
    ("--etcd", {"metavar": "FILE", "help": "The etcd binary. Default: beside the interpreter, or on PATH."}),
    ("--etcd-quota", {"metavar": "SIZE", "help": "Size of etcd's database. Default 8G."}),
    ("--compaction-interval", {"metavar": "TIME", "help": "Between compactions of etcd. Default 30s."}),
    ("--log-level", {"metavar": "LEVEL", "help": "debug, info, warning or error."}),
)


def with_settings(function: Callable[..., R]) -> Callable[..., R]:
    """Adds the flags, and gives the verb the node's Settings as its first argument."""

    @functools.wraps(function)
    def wrapped(**given: object) -> R:
        return function(_load({key: given.pop(key) for key in keys}), **given)

    keys = [flag.removeprefix("--").replace("-", "_") for flag, _ in _FLAGS]
    decorated: Callable[..., R] = wrapped
    for flag, attributes in reversed(_FLAGS):
        decorated = click.option(flag, **attributes)(decorated)  # type: ignore[arg-type]  # a table of keyword arguments
    return decorated


def _load(flags: dict[str, object]) -> Settings:
    from node.config import ConfigError, load_settings

    try:
        return load_settings(flags)
    except ConfigError as error:
        raise Failure(str(error), ExitCode.USAGE) from None
