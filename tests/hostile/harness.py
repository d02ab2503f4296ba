"""Running attacks, where they must fail and where they may succeed.

An attack is a script in `attacks/`, for the plain Python of the machine. It says one line per attempt (see
`attacks/attempts.py`); a test states what must come out. An attack that fails means something only if it works without
the protection that it is aimed at, so it is also run in one of these places:

* `throwaway`: new namespaces of every kind for an ordinary user, who is root in them and nowhere else; no seccomp, no
  control group, no view of its own;
* `ordinary`: as an ordinary user of the machine, in a PID and a mount namespace alone;
* `weakened` (`weaken.py`): a sandbox as any other, with one protection left out;
* `as_root`, in the guest (`tests/guest`): for what only the real root may do.

Never the machine itself: `attacks/guard.py` refuses.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from isolation.client import Sandbox
from isolation.spec import BindMount, Ended, SandboxSpec
from tests.isolation_live.conftest import PATH, Runner, text
from tests.support.guest import in_guest
from tests.support.require import require
from tests.support.wait import patient, wait_until

ATTACKS = Path(__file__).parent / "attacks"
#: Where attacks lie in a sandbox.
PLACE = "/attacks"
PYTHON = ("/usr/bin/python3", "-S", "-B")
#: See `attacks/guard.py`.
MARKER = "PILFER_HOSTILE"
REFUSED = 99

REFUSED_EPERM = "refused EPERM"

#: An ordinary user that has nothing and whom nobody else uses.
_THROWAWAY_UID = "65533"
_THROWAWAY = """
mount -t tmpfs -o mode=755,size=1m attacks /mnt
mkdir /mnt/attacks /mnt/share
mount --bind "$1" /mnt/attacks
mount -o remount,bind,ro /mnt/attacks
test -z "$2" || mount --bind "$2" /mnt/share
mount -t tmpfs -o mode=1777,size=64m tmp /tmp
cd /tmp
user=$3
shift 3
test "$user" = 0 || set -- setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all -- "$@"
exec prlimit --nproc=400 --as=2147483648 --cpu=600 --core=0 -- "$@"
"""
_APART = ("unshare", "--mount", "--propagation", "private")
_WITH_PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")
_ROOT_OF_NOTHING = (
    *("unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--cgroup"),
    *(*_WITH_PROCESSES, "--"),
)
_THROWAWAY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Report:
    """What an attack said, and how it ended."""

    #: Name of the attempt -> outcome: `refused EPERM`, `killed SIGSYS`, `SUCCEEDED ...`. The last word counts.
    said: Mapping[str, str]
    stdout: str
    stderr: str
    #: None: it ran in no sandbox.
    ended: Ended | None = None
    #: Of the command; None where a signal ended it.
    exit_code: int | None = None

    @property
    def succeeded(self) -> frozenset[str]:
        """The attempts that did what they were meant to do."""
        return frozenset(name for name, outcome in self.said.items() if outcome.startswith("SUCCEEDED"))

    def get(self, name: str) -> str:
        """The outcome of one attempt. Raises AssertionError, with all that was said, where there is none."""
        if name not in self.said:
            raise AssertionError(f"no attempt {name!r} was made; said: {dict(self.said)}; stderr: {self.stderr}")
        return self.said[name]


class Hostile:
    """Runs attacks in the sandboxes of one spawner."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.marker = marker()

    def spec(
        self,
        attack: str,
        *args: str,
        mounts: tuple[BindMount, ...] = (),
        env: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> SandboxSpec:
        """`attack`: name of the script, without `.py`. The rest as `Runner.spec` has it."""
        argv = (*PYTHON, f"{PLACE}/{attack}.py", *args)
        return self.runner.spec(*argv, mounts=(here(), *mounts), env={**self.environment, **(env or {})}, **fields)

    @property
    def environment(self) -> dict[str, str]:
        """What lets an attack through the guard, for a spec that a test makes by itself."""
        return {MARKER: self.marker}

    async def run(self, attack: str, *args: str, stdin: bytes = b"", **fields: Any) -> Report:
        """To its end."""
        sandbox, out, err = await self.runner.launch(self.spec(attack, *args, **fields), stdin=stdin)
        ended = await sandbox.wait()
        return _report(text(out), text(err), ended, ended.exit_code)

    async def start(self, attack: str, *args: str, says: str = "", **fields: Any) -> Sandbox:
        """Returns when its output has `says`; it runs on."""
        sandbox, out, err = await self.runner.launch(self.spec(attack, *args, **fields))
        await wait_until(lambda: says in text(out), what=f"{attack} says {says!r}; it said {text(err)!r}")
        return sandbox


def here() -> BindMount:
    """The attacks, for a task."""
    return BindMount(str(ATTACKS.resolve()), PLACE)


def marker() -> str:
    """See `attacks/guard.py`: a word of its own (ours: by it what lives on is found), and the namespaces in which no
    attack may run."""
    names = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "mnt")]
    return " ".join([f"{os.getpid()}-{uuid4().hex}", *names])


async def throwaway(attack: str, *args: str) -> Report:
    """Runs it to its end as the root of namespaces that are gone with it, and is an ordinary user outside of them."""
    command = (*_ROOT_OF_NOTHING, *PYTHON, f"/mnt/attacks/{attack}.py", *args)
    return await asyncio.to_thread(_run_apart, _APART, command, None)


async def throwaway_command(*argv: str) -> Report:
    """The same for a program of the machine's, which no guard looks after."""
    return await asyncio.to_thread(_run_apart, _APART, (*_ROOT_OF_NOTHING, *argv), None)


async def ordinary(attack: str, *args: str, share: Path | None = None) -> Report:
    """Runs it to its end as an ordinary user, who sees his own processes and the machine's files; `share` is at
    /mnt/share, as it is."""
    command = (*PYTHON, f"/mnt/attacks/{attack}.py", *args)
    return await asyncio.to_thread(_run_apart, (*_APART, *_WITH_PROCESSES), command, share)


async def as_root(attack: str, *args: str) -> Report:
    """Runs it to its end as root, in the guest alone; skips the test everywhere else."""
    require("guest", is_there=in_guest(), reason="only the guest may be attacked by root (make test-v2)")
    command = (*PYTHON, f"/mnt/attacks/{attack}.py", *args)
    return await asyncio.to_thread(_run_apart, (*_APART, *_WITH_PROCESSES), command, None, "0")


def _run_apart(apart: tuple[str, ...], argv: tuple[str, ...], share: Path | None, user: str = _THROWAWAY_UID) -> Report:
    done = subprocess.run(
        [*apart, "--", "sh", "-ec", _THROWAWAY, "sh", str(ATTACKS.resolve()), str(share or ""), user, *argv],
        env={"PATH": f"{PATH}:/usr/sbin:/sbin", MARKER: marker()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=patient(_THROWAWAY_TIMEOUT_S),  # kills it, and --kill-child kills all that it started
    )
    code = done.returncode if done.returncode >= 0 else None
    return _report(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), None, code)


def _report(stdout: str, stderr: str, ended: Ended | None, exit_code: int | None) -> Report:
    if exit_code == REFUSED:
        raise AssertionError(f"the guard refused: {stderr}")
    lines = (line.partition(": ") for line in stdout.splitlines())
    said = {name: outcome.strip() for name, colon, outcome in lines if colon}
    return Report(said, stdout, stderr, ended, exit_code)
