"""`node env`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings
from node.cli.output import json_line, line
from node.cli.parameters import json_option

if TYPE_CHECKING:
    from node.config import Settings

#: Where the embedded etcd listens for clients: loopback alone.
ETCD_HOST = "127.0.0.1"


@click.command("env")
@with_settings
@json_option
def command(settings: Settings, as_json: bool) -> None:
    """Print the settings that etcdctl needs to look into this node's etcd.

    For a shell: eval "$(node env)"; etcdctl get --prefix /task/ --keys-only
    """
    values = etcdctl_settings(settings)
    if as_json:
        json_line(dict(values))
        return
    for name, value in values.items():
        line(f"export {name}={shlex.quote(value)}")


def etcdctl_settings(settings: Settings) -> dict[str, str]:
    """ETCDCTL_* of the etcd in this data directory. Raises Failure where none was started there, or not by us."""
    from etcd.ports import remembered

    data_dir = settings.data_dir
    try:
        ports = remembered(data_dir / "etcd" / "ports.json")
    except PermissionError as error:
        raise Failure(
            f"{error.filename} may not be read by this user: its etcd is for the user that the node runs as",
            ExitCode.NOT_ALLOWED,
        ) from None
    if ports is None:
        raise Failure(
            f"no etcd was ever started in {data_dir}: start a node there, or name its directory with --data-dir",
            ExitCode.NOT_FOUND,
        )
    pki = data_dir / "pki"
    return {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": f"https://{ETCD_HOST}:{ports.client}",
        "ETCDCTL_CACERT": str(pki / "ca.crt"),
        "ETCDCTL_CERT": str(pki / "node.crt"),
        "ETCDCTL_KEY": str(pki / "node.key"),
    }
