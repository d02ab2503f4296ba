"""The first sandbox of all, at the spawner's start: shows that this host can make them, before any task is taken.

It is a sandbox as every other, but for its command, which does not exist. Where every step of the plan works, exec is
what fails; what fails earlier would fail for every task, and is told as what the host lacks.
"""

from __future__ import annotations

import errno
import os

from isolation.errors import HostLacks
from isolation.launch import Launcher
from isolation.spec import Limits, SandboxSpec, SetupFailed

_COMMAND = "/.pilfer-empty/no-such-command"
_SPEC = SandboxSpec("trial", (_COMMAND,), {}, Limits(1.0, None, 1))

#: Of a step that an ordinary user's host refuses, what that means and what to do.
_WORDS = {
    "proc": "this host covers parts of /proc (a container), and so allows no other: run the container with "
    "--security-opt systempaths=unconfined",
    "clone": "the limit of namespaces is reached, or something forbids them: see sysctl user.max_user_namespaces",
}


def run(launcher: Launcher) -> None:
    """Waits for its end. Raises HostLacks; StepFailed and OSError as any launch. Nothing is left of it."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        sandbox = launcher.launch(_SPEC, (null, null, null))
    finally:
        os.close(null)
    os.waitpid(sandbox.pid, 0)
    sandbox.read_note()
    failed = sandbox.setup_failed()
    launcher.release(sandbox)
    if failed is None or (failed.step, failed.errno) != ("exec", errno.ENOENT):
        raise HostLacks(_explained(failed))


def _explained(failed: SetupFailed | None) -> str:
    if failed is None:
        return "a trial sandbox ran a command that does not exist"
    means = _WORDS.get(failed.step, "what this step does is forbidden here")
    return f"no sandbox can be made here: step {failed.step!r}: {failed.detail}: {means}; or start the node as root"
