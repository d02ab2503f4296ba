"""The guard: importing this ends the script with exit 99 unless it is where an attack may run.

Every attack imports it (or `attempts`, which does) before it does anything. An attack may run only where all of these
hold:

1. the harness started it: its marker is in the environment, with the namespaces of the test that set it;
2. it is in a PID namespace and a mount namespace that are neither the test's nor the machine's first;
3. it has no power over the machine: it is root of nothing but a user namespace of its own in which nobody is the
   machine's root, or an ordinary user without any capability. In the guest, which is thrown away, root is fine.

For the plain Python of the machine: the standard library alone.
"""

import os
import sys
from pathlib import Path

MARKER = "PILFER_HOSTILE"
REFUSED = 99

#: The inodes of the first namespaces of a machine are the same everywhere (include/uapi/linux/nsfs.h, proc_ns.h).
FIRST = {"pid": "pid:[4026531836]", "mnt": "mnt:[4026531832]", "user": "user:[4026531837]"}
#: On the kernel's command line of the guest of tests/guest, and nowhere else.
GUEST = "pilfer.guest"


def reason_to_refuse() -> str:
    """Why no attack may run here; empty where one may."""
    marker = os.environ.get(MARKER, "").split()
    if len(marker) != 3:
        return f"the harness did not start this (no {MARKER})"
    _, tests_pid, tests_mnt = marker
    for kind, tests_own in (("pid", tests_pid), ("mnt", tests_mnt)):
        own = _namespace(kind)
        if own in (tests_own, FIRST[kind]):
            return f"this is the machine's own {kind} namespace"
    if GUEST in [word.partition("=")[0] for word in Path("/proc/cmdline").read_text().split()]:
        return ""
    return _power()


def _power() -> str:
    if _namespace("user") == FIRST["user"]:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        if "0" in status["Uid"].split() or int(status["CapEff"], 16) or int(status["CapPrm"], 16):
            return "this has privileges on the machine itself"
        return ""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        _, outside, _ = line.split()
        if outside == "0":
            return "the machine's root is in this user namespace"
    return ""


def _namespace(kind: str) -> str:
    return str(Path(f"/proc/self/ns/{kind}").readlink())


_reason = reason_to_refuse()
if _reason:
    print(f"refused to attack: {_reason}", file=sys.stderr, flush=True)
    os._exit(REFUSED)
