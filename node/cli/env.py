"""`node env`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings
from node.cli.output import json_line, line
from node.cli.parameters import json_option

if TYPE_CHECKING:
    from node.config import Settings

#: The embedded etcd listens for clients here, and where the node listens.
ETCD_HOST = "127.0.0.1"


@click.command("env")
@with_settings
@json_option
def command(settings: Settings, as_json: bool) -> None:
    """Print the settings that etcdctl needs to look into this node's etcd.

    Where this host has no vote, into the voters'. For a shell: eval "$(node env)"; etcdctl get --prefix /task/
    --keys-only
    """
    values = etcdctl_settings(settings)
    if as_json:
        json_line(dict(values))
        return
    for name, value in values.items():
        line(f"export {name}={shlex.quote(value)}")


def etcdctl_settings(settings: Settings) -> dict[str, str]:
    """ETCDCTL_* of the etcd in this data directory, or of the voters that it remembers. Raises Failure where there is
    neither, or not for this user."""
    data_dir = settings.data_dir
    try:
        endpoints = _endpoints(data_dir)
    except PermissionError as error:
        raise Failure(
            f"{error.filename} may not be read by this user: its etcd is for the user that the node runs as",
            ExitCode.NOT_ALLOWED,
        ) from None
    if not endpoints:
        raise Failure(
            f"no node was ever started in {data_dir}: start a node there, or name its directory with --data-dir",
            ExitCode.NOT_FOUND,
        )
    pki = data_dir / "pki"
    return {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": ",".join(f"https://{endpoint}" for endpoint in endpoints),
        "ETCDCTL_CACERT": str(pki / "ca.crt"),
        "ETCDCTL_CERT": str(pki / "node.crt"),
        "ETCDCTL_KEY": str(pki / "node.key"),
    }


def _endpoints(data_dir: Path) -> tuple[str, ...]:
    """HOST:PORT each; none where no node was ever started. Raises PermissionError."""
    from etcd.ports import remembered
    from node.joining.cluster_memory import ClusterMemory, ClusterMemoryError

    # A host that lost its vote keeps the ports, and has its data moved aside.
    ports = remembered(data_dir / "etcd" / "ports.json")
    if ports is not None and (data_dir / "etcd" / "data").is_dir():
        return (f"{ETCD_HOST}:{ports.client}",)
    try:
        memory = ClusterMemory.load(data_dir)
    except ClusterMemoryError as error:
        raise Failure(str(error), ExitCode.FAILURE) from None
    return memory.etcd_endpoints if memory else ()
