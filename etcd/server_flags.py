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

#: What etcd logs of its own member alone: when it is removed while it runs, when it is started again on the old data,
#: and when peers tell it so.
_REMOVAL = "the member has been permanently removed from the cluster"
#: What is dialed for what is bound.
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (compared with, not bound to)

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
    #: One certificate for both roles; its names must cover the peer address that others dial, and what clients check
    #: (`ClientTls.server_name`, or the address).
    tls: ClientTls
    #: Addresses (no names: etcd binds nothing else) on which clients are served. Our own client takes the first; the
    #: others are for clients on other machines, with certificates. A wildcard stands alone: it covers loopback too.
    client_hosts: tuple[str, ...] = ("127.0.0.1",)
    #: The address on which other members are served.
    peer_host: str = "127.0.0.1"
    #: By which name or address others reach this machine; None: the last of client_hosts, and peer_host. Must be given
    #: where these are wildcards.
    advertised_host: str | None = None
    #: The peer port that the cluster was told already, before this member started for the first time; None: chosen.
    peer_port: int | None = None
    #: Only certificates with this DNS name are let in, on both ports: of all that the cluster's authority signed, those
    #: of its nodes. None: all of them.
    allowed_hostname: str | None = None
    #: The node's own port: etcd takes the two after it where these are free. None: any free ones.
    api_port: int | None = None
    #: "new" founds a cluster: only for the very first start of a founder, or an empty directory would quietly become
    #: a second cluster. "existing" joins the one in `initial_cluster`, as it was added there. Ignored once there is
    #: data: a member that comes back needs no list.
    state: Literal["new", "existing"] = "new"
    #: The other members, name -> peer URL (a member with several stands there several times), for "existing".
    initial_cluster: tuple[tuple[str, str], ...] = ()
    #: Makes this member the only one of its cluster, whatever its data say: for an operator whose quorum is lost.
    force_new_cluster: bool = False
    quota_bytes: int = 8 << 30
    #: The same on all members. A lone voter that was restarted serves after 1 to 2 of these (it elects itself, though
    #: nobody else could be), and the shortest lease is 1.5 of them, rounded up to seconds.
    election_timeout_ms: int = 1000

    @property
    def own_address_host(self) -> str:
        """Where this machine's own client finds it."""
        return _LOOPBACK_OF.get(self.client_hosts[0], self.client_hosts[0])

    @property
    def has_data(self) -> bool:
        """Whether it was a member before, so that it comes back as the same one."""
        return (self.data_dir / "member" / "wal").is_dir()

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


def address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(host: str, port: int) -> str:
    return f"https://{address(host, port)}"


def client_url(config: EtcdConfig, ports: Ports) -> str:
    """What the member tells the cluster, for clients on other machines."""
    return url(config.advertised_host or config.client_hosts[-1], ports.client)


def peer_url(config: EtcdConfig, ports: Ports) -> str:
    """What the member tells the cluster, for other members."""
    return url(config.advertised_host or config.peer_host, ports.peer)


def known_flags(help_text: str) -> frozenset[str]:
    """Names of the flags in `etcd --help`, without dashes."""
    return frozenset(re.findall(r"^\s+--([a-z0-9][a-z0-9-]*)", help_text, re.MULTILINE))


def arguments(config: EtcdConfig, ports: Ports, flags: frozenset[str]) -> list[str]:
    """Everything after the program's name."""
    own_peer_url = peer_url(config, ports)
    members = [*config.initial_cluster, (config.name, own_peer_url)]
    certificate = (str(config.tls.cert), str(config.tls.key), str(config.tls.ca))
    given: list[tuple[str, str]] = [
        ("name", config.name),
        ("data-dir", str(config.data_dir)),
        ("listen-client-urls", ",".join(url(host, ports.client) for host in dict.fromkeys(config.client_hosts))),
        ("advertise-client-urls", client_url(config, ports)),
        ("listen-peer-urls", url(config.peer_host, ports.peer)),
        ("initial-advertise-peer-urls", own_peer_url),
        ("initial-cluster", ",".join(f"{name}={member_url}" for name, member_url in members)),
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
    if config.force_new_cluster:
        given += [("force-new-cluster", "true")]
    if config.allowed_hostname is not None:
        given += _admission(config.allowed_hostname, config.binary.version)
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


def _admission(hostname: str, version: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Who may connect, by a name in the certificate.

    etcd also compares the address that a peer comes from with the addresses in its certificate. With the name that
    proves nothing more, and it shuts out a peer that comes from another address of its machine.
    """
    skip = "peer-skip-client-san-verification"
    return [
        ("client-cert-allowed-hostname", hostname),
        ("peer-cert-allowed-hostname", hostname),
        (skip if version >= (3, 6, 0) else f"experimental-{skip}", "true"),
    ]


def tells_removal(log_tail: str) -> bool:
    """Whether the log of a process that died says that the cluster has removed its member."""
    return _REMOVAL in log_tail


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
