"""Attempts to gain something from files that lie in a directory which the machine's root filled: argv[1]."""

import os
import subprocess
import sys

from attempts import attempt_aside, say


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise PermissionError(1, done.stderr)
    return done.stdout


def setuid_program() -> str:
    """A copy of `id` that belongs to root and has the setuid bit."""
    identity = run(f"{sys.argv[1]}/id", "-u").strip()
    if identity != "0":
        raise PermissionError(1, identity)
    return "as root"


def capable_program() -> str:
    """A copy of `cat` that may read every file."""
    return run(f"{sys.argv[1]}/cat", f"{sys.argv[1]}/secret")


def main() -> None:
    attempt_aside("setuid program", setuid_program)
    attempt_aside("program with a capability", capable_program)
    attempt_aside("device", lambda: os.close(os.open(f"{sys.argv[1]}/device", os.O_RDWR)))
    say("done", "yes")


if __name__ == "__main__":
    main()
