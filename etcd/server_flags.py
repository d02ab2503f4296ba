"""The command line of etcd: which flags, by what the program at hand knows.

Pure: from a configuration and the text of `etcd --help` to arguments. Never an unsafe setting (`--unsafe-no-fsync`
and the like): an acknowledged submit is durable. Both ports are TLS with client certificates from the first start,
since a peer address that began as http stays http in the member list.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etcd.binary import EtcdBinary
from etcd.endpoints import ClientTls
from etcd.ports import Ports

#: Bound of etcd's log file, in MiB; one older file is kept beside it.
LOG_LIMIT_MIB = 16


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """What one member of etcd is started with."""

    binary: EtcdBinary
    #: The member's name; must not change over the life of its data directory.
    name: str
    #: A directory of its own: etcd's data, its logs, the remembered ports.
    directory: Path
    #: One certificate for both roles; its names must cover client_host and peer_host.
    tls: ClientTls
    #: Loopback only (127.0.0.0/8): clients on other machines come through the node.
    client_host: str = "127.0.0.1"
    peer_host: str = "127.0.0.1"
    #: The node's own port: etcd takes the two after it where these are free. None: any free ones.
    api_port: int | None = None
    #: "new" founds a cluster; "existing" joins the one in `initial_cluster`. Ignored once there is data.
    state: Literal["new", "existing"] = "new"
    #: The other members, name -> peer URL, for "existing".
    initial_cluster: tuple[tuple[str, str], ...] = ()
    quota_bytes: int = 8 << 30
    #: The same on all members. A lone voter that was restarted serves after 1 to 2 of these (it elects itself, though
    #: nobody else could be), and the shortest lease is 1.5 of them, rounded up to seconds.
    election_timeout_ms: int = 1000

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        return self.directory / "etcd.log"

    @property
    def output_file(self) -> Path:
        """What etcd writes past its log: panics, complaints about flags."""
        return self.directory / "etcd.out"

    @property
    def ports_file(self) -> Path:
        return self.directory / "ports.json"


def url(host: str, port: int) -> str:
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def known_flags(help_text: str) -> frozenset[str]:
    """Names of the flags in `etcd --help`, without dashes."""
    return frozenset(re.findall(r"^\s+--([a-z0-9][a-z0-9-]*)", help_text, re.MULTILINE))


def arguments(config: EtcdConfig, ports: Ports, flags: frozenset[str]) -> list[str]:
    """Everything after the program's name."""
    client_url, peer_url = url(config.client_host, ports.client), url(config.peer_host, ports.peer)
    members = [*config.initial_cluster, (config.name, peer_url)]
    certificate = (str(config.tls.cert), str(config.tls.key), str(config.tls.ca))
    given: list[tuple[str, str]] = [
        ("name", config.name),
        ("data-dir", str(config.data_dir)),
        ("listen-client-urls", client_url),
        ("advertise-client-urls", client_url),
        ("listen-peer-urls", peer_url),
        ("initial-advertise-peer-urls", peer_url),
        ("initial-cluster", ",".join(f"{name}={address}" for name, address in members)),
        ("initial-cluster-state", config.state),
        ("initial-cluster-token", "pilfer"),
        *zip(("cert-file", "key-file", "trusted-ca-file"), certificate, strict=True),
        ("client-cert-auth", "true"),
        *zip(("peer-cert-file", "peer-key-file", "peer-trusted-ca-file"), certificate, strict=True),
        ("peer-client-cert-auth", "true"),
        ("quota-backend-bytes", str(config.quota_bytes)),
        ("election-timeout", str(config.election_timeout_ms)),
        ("heartbeat-interval", str(config.election_timeout_ms // 10)),
        # Entries are batches of up to 1 MiB: with the defaults (100,000 and 5,000) they would fill the memory.
        ("snapshot-count", "2000"),
        ("auto-compaction-retention", "0"),  # `etcd/maintenance.py` compacts
        ("grpc-keepalive-min-time", "1s"),
        ("logger", "zap"),
        ("log-outputs", str(config.log_file)),
        ("log-level", "info"),
    ]
    if "compaction-batch-limit" in flags:  # 3.6
        given += [("compaction-batch-limit", "10000")]
    elif "experimental-compaction-batch-limit" in flags:
        # With the default, compaction is no faster than the tasks that it cleans up after.
        given += [("experimental-compaction-batch-limit", "10000")]
    if "snapshot-catchup-entries" in flags:  # 3.6
        given += [("snapshot-catchup-entries", "1000")]
    elif config.binary.version >= (3, 5, 0):  # there since 3.5, but not in its help
        given += [("experimental-snapshot-catchup-entries", "1000")]
    if "enable-grpc-gateway" in flags:
        given += [("enable-grpc-gateway", "false")]
    if "enable-log-rotation" in flags:
        rotation = {"maxsize": LOG_LIMIT_MIB, "maxage": 0, "maxbackups": 1, "localtime": False, "compress": False}
        given += [("enable-log-rotation", "true"), ("log-rotation-config-json", json.dumps(rotation))]
    return [f"--{flag}={value}" for flag, value in given]


def last_words(log_tail: str, output_tail: str) -> str:
    """One line for people: why etcd died, from the ends of its log and its output; empty when neither tells."""
    for line in reversed(log_tail.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            return ": ".join(str(entry[key]) for key in ("msg", "error") if entry.get(key))
    spoken = [line for line in output_tail.splitlines() if line.strip() and not line.startswith(("\t", "goroutine"))]
    return spoken[-1].strip() if spoken else ""
