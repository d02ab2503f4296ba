"""Which of the host's files tasks see: the lists, with their reasons. `isolation/mounts.py` makes the view from them.

Programs and what configures them are shown; state, data and people's files are not, unless the node shares them or a
task mounts them. The reasons, in order of weight:

* A unix socket or a named pipe on any visible path can be used by whoever has the right to write to it, in spite of a
  network namespace and of a read-only mount. They lie in /run, /tmp, /var/lib and /var/spool.
* What lies in /home, /root, /srv, /mnt and /media was made readable for the machine's users at most, not for strangers.
* Other names at the top (/opt, /data, /work, a file server's) were put there for everybody on the machine: they are
  shown read-only, and the file permissions of the host decide, as they do for its users. Sockets in them are covered
  if they are there at the node's start.

Nothing here touches a mount.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

#: Of the host's root, not shown: empty directories of ours.
HIDDEN = ("run", "root", "home", "tmp", "var", "srv", "mnt", "media", "boot", "lost+found")
#: Our own in every sandbox: nothing can be mounted there.
OWN = ("proc", "dev", "sys")

#: Of /var, shown where the host has it: parts of installed programs that their packages keep there.
SHOWN_IN_VAR = (
    *("lib/dpkg", "lib/rpm", "lib/alternatives"),  # what is installed (dpkg-shlibdeps and others ask)
    *("lib/texmf", "lib/xml-core", "lib/sgml-base", "cache/fontconfig"),  # TeX's formats, catalogs, fonts
    *("lib/aspell", "lib/dictionaries-common", "lib/gems", "lib/ghc"),  # dictionaries; libraries of languages
    "lib/ca-certificates",  # SUSE's, to which /etc/ssl leads
)
#: Of our own /var: programs that want a temporary directory here get the sandbox's own.
LINKS_IN_VAR = {"run": "/run", "lock": "/run/lock", "tmp": "/tmp"}  # noqa: S108  (the sandbox's own)

#: Covered in /sys: firmware tables, power meters (which tell what others compute), the hardware's throttling, LSMs.
MASKED_IN_SYS = ("firmware", "devices/virtual/powercap", "kernel/security")

#: Covered in /proc, of what container engines cover: what tells of others' doings. Each costs every sandbox some 15 us,
#: so what only lists hardware (acpi, asound, scsi), as /sys does too, is left. The engines' read-only paths, such as
#: /proc/sys, need no mount here: nothing in them can be written by a user without capabilities
#: (`tests/isolation_live/test_proc.py` looks at every file).
MASKED_IN_PROC = ("keys", "interrupts", "latency_stats", "sched_debug", "timer_list", "timer_stats")

#: Sockets in places that are shown, covered one by one; each costs every sandbox a microsecond.
SOCKETS_MAX = 32

_LISTENS = 0x10000  # __SO_ACCEPTCON
_DATAGRAM = 2


def shown_in_var(var: Path) -> Iterator[str]:
    """Those of SHOWN_IN_VAR that this host has as real directories."""
    for name in SHOWN_IN_VAR:
        path = var / name
        if path.is_dir() and path.resolve() == path:
            yield name


def masked_in_proc(proc_fd: int) -> Iterator[str]:
    """Those of MASKED_IN_PROC that this kernel has and shows to everybody; the others are out of reach by mode."""
    for name in MASKED_IN_PROC:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=proc_fd).st_mode & stat.S_IROTH:
                yield name


def bound_sockets(proc_net_unix: str) -> Iterator[str]:
    """Paths of the sockets that somebody waits at, from the text of /proc/net/unix (of our network namespace)."""
    for line in proc_net_unix.splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) < 8 or not fields[7].startswith("/"):
            continue
        if int(fields[3], 16) & _LISTENS or int(fields[4], 16) == _DATAGRAM:
            yield fields[7]


def is_open_socket(path: str) -> bool:
    """Whether everybody may connect to it."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISSOCK(mode) and bool(mode & stat.S_IWOTH)
