"""Finds the etcd program, and refuses versions that lose data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: The oldest version that Pilfer is tested with: Debian 12's.
OLDEST = (3, 4, 23)
#: "Inconsistent revision": these may lose acknowledged writes after a crash (etcd's own advice is not to run them).
CORRUPTING = ((3, 5, 0), (3, 5, 2))


class EtcdNotFound(Exception):  # noqa: N818  (named as the conventions name errors)
    """There is no etcd that can be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    path: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def find_etcd(setting: str | None) -> EtcdBinary:
    """The etcd to run: the one that the setting names, else beside the interpreter (`make setup` puts it there), else
    on PATH. Raises EtcdNotFound; a setting that cannot be used is an error, never passed over."""
    if setting:
        path = Path(setting).expanduser()
        if not path.is_file() or not os.access(path, os.X_OK):
            raise EtcdNotFound(f"the setting for the etcd program names {path}, which is not an executable file")
        return _checked(path)
    beside = Path(sys.executable).parent / "etcd"
    if os.access(beside, os.X_OK):
        return _checked(beside)
    on_path = shutil.which("etcd")
    if on_path:
        return _checked(Path(on_path))
    raise EtcdNotFound(
        f"no etcd found in {beside.parent} or on PATH: run `make setup`, install the package etcd-server, "
        "or name the program with the setting etcd_binary"
    )


def refusal(version: tuple[int, int, int]) -> str | None:
    """Why this version must not be used, and what to do; None when it may."""
    text = ".".join(map(str, version))
    if version < OLDEST:
        return f"etcd {text} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
    if CORRUPTING[0] <= version <= CORRUPTING[1]:
        return f"etcd {text} may lose acknowledged writes (versions 3.5.0 to 3.5.2): use 3.5.23 or newer, or 3.4.23"
    return None


def parse_version(output: str) -> tuple[int, int, int] | None:
    """From the output of `etcd --version`."""
    found = re.search(r"etcd Version:\s*(\d+)\.(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _checked(path: Path) -> EtcdBinary:
    output = run_for_text(path, "--version")
    version = parse_version(output)
    if version is None:
        raise EtcdNotFound(f"{path} does not say which etcd it is: `{path} --version` printed {output[:200]!r}")
    why = refusal(version)
    if why:
        raise EtcdNotFound(f"{path}: {why}. Run `make setup`, or name another program with the setting etcd_binary")
    return EtcdBinary(path, version)


def run_for_text(path: Path, argument: str) -> str:
    """What the program prints for one argument (stdout, then stderr)."""
    try:
        done = subprocess.run([path, argument], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EtcdNotFound(f"{path} cannot be run: {error}") from error
    return done.stdout + done.stderr
