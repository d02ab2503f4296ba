"""`python -m tests.guest [options] -- COMMAND...`: runs a command as root in the guest; its exit status is ours."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.guest import machine

ROOT = Path(__file__).parents[2]

#: How much slower than the host an emulated machine is taken to be, for tests that wait (tests/support/wait.py).
PATIENCE = "20"

#: The guest could not tell how the command ended; as for a command that cannot be run.
FAILED = 126


def cache() -> Path:
    """Where fetch.sh unpacks to."""
    return Path(os.environ.get("PILFER_GUEST") or ROOT / ".guest").resolve()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guest", description=__doc__)
    default = machine.Size()
    parser.add_argument("--cpus", type=int, default=default.cpus)
    parser.add_argument("--memory-mib", type=int, default=default.memory_mib)
    parser.add_argument("--disk-mib", type=int, default=default.disk_mib)
    parser.add_argument("--limit-s", type=float, default=3600.0, help="for the whole of it")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    subprocess.run([ROOT / "tests/guest/fetch.sh", cache()], check=True)
    machine.die_in_order()
    # What is set for tests by whoever runs them is handed on; all else is the guest's own.
    given = ("PATH", "TERM", "REQUIRE", "PATIENCE")
    environment = {"HOME": "/root", "LC_ALL": "C.UTF-8", "PATIENCE": PATIENCE}
    environment |= {name: os.environ[name] for name in given if name in os.environ}
    size = machine.Size(arguments.cpus, arguments.memory_mib, arguments.disk_mib)
    try:
        return machine.run(
            cache(),
            arguments.command,
            environment=environment,
            cwd=Path.cwd(),
            size=size,
            limit_s=arguments.limit_s,
        )
    except machine.GuestError as failed:
        print(f"guest: {failed}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main())
