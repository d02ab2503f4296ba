"""A backup becomes a data directory of etcd: by etcd's own program, which checks it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from etcd.binary import EtcdBinary, EtcdNotFound, find_etcd
from node.config import Settings
from node.datadir import DataDirError

UNPACK_LIMIT_S = 600.0
#: Told to etcd when it is unpacked; a start tells it the right one.
_PLACEHOLDER_URL = "https://127.0.0.1:2380"


def unpack(settings: Settings, file: Path, target: Path, name: str) -> None:
    """Makes `target`, etcd's data directory for the member `name`, of a snapshot that `check_backup` found
    whole; its checksum is compared once more.

    Raises DataDirError, EtcdNotFound.
    """
    program = _find_program(find_etcd(str(settings.etcd_binary) if settings.etcd_binary else None))
    arguments = [
        *(str(program), "snapshot", "restore", str(file), "--data-dir", str(target), "--name", name),
        *("--initial-cluster", f"{name}={_PLACEHOLDER_URL}", "--initial-advertise-peer-urls", _PLACEHOLDER_URL),
        *("--initial-cluster-token", "pilfer"),
    ]
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=UNPACK_LIMIT_S, check=False, env={"ETCDCTL_API": "3"}
        )
    except subprocess.TimeoutExpired:
        raise DataDirError(f"{program} did not unpack {file} within {UNPACK_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise DataDirError(f"{program} did not unpack {file}, though it fits its checksum: {words}")


def _find_program(binary: EtcdBinary) -> Path:
    """etcdutl, or etcdctl of a version that still has it: beside etcd, or on PATH. Raises EtcdNotFound."""
    for program in ("etcdutl", "etcdctl"):
        beside = binary.path.parent / program
        found = str(beside) if beside.is_file() else shutil.which(program)
        if found and (program == "etcdutl" or binary.version < (3, 6, 0)):
            return Path(found)
    wanted = "etcdutl" if binary.version >= (3, 6, 0) else "etcdctl"
    raise EtcdNotFound(f"{wanted} is needed to unpack a backup, and is neither beside {binary.path} nor on PATH")
