"""What a command may not do: identity, capabilities, resource bounds.

Once, in the spawner: the bounding set is emptied and no_new_privs set, so that nothing that it clones can gain a
capability by exec, whatever the file. Per sandbox: another identity, which drops the capabilities that the spawner
itself has (capabilities(7): all are lost when no user id is 0 any more).
"""

from __future__ import annotations

import contextlib
import resource

import prctl  # type: ignore[import-untyped]  # the library has no stubs

from isolation import _sandbox as sys_
from isolation import kernel

#: Descriptors of a command: soft as every program expects (select(2) ends at 1024), hard as Debian's default.
NOFILE_SOFT = 1024
NOFILE_HARD = 524288

_INHERITED_BOUNDS = (
    # Not 0: a core_pattern that is a program is started for 0 too, and for 1 it is not (core(5), fs/coredump.c).
    (resource.RLIMIT_CORE, 1),
    # Memory that cannot be reclaimed, and queues in kernel memory, are no task's business.
    (resource.RLIMIT_MEMLOCK, 8 * 1024 * 1024),
    (resource.RLIMIT_MSGQUEUE, 819200),
    (resource.RLIMIT_RTPRIO, 0),
    (resource.RLIMIT_NICE, 0),
)


def drop_for_good() -> None:
    """In the spawner, once: children cannot gain privileges, and inherit these bounds.

    The spawner's own capabilities stay: they are what it makes sandboxes with.
    """
    prctl.capbset.limit()
    # The kernel knows capabilities that the library does not; EINVAL is the first that nobody knows.
    with contextlib.suppress(OSError):
        for number in range(max(prctl.ALL_CAPS) + 1, 64):
            sys_.syscall(sys_.SYS_prctl, kernel.PR_CAPBSET_DROP, number, 0, 0, 0)
    prctl.set_no_new_privs(1)
    # An empty session keyring: that of whoever started the node is inherited otherwise, for tasks to see in /proc/keys,
    # and for the kernel to look keys up in. ENOSYS, EPERM: a kernel or a container without keys.
    with contextlib.suppress(OSError):
        sys_.syscall(sys_.SYS_keyctl, kernel.KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    for which, bound in _INHERITED_BOUNDS:
        _, hard = resource.getrlimit(which)
        # Raising a hard limit takes CAP_SYS_RESOURCE, which a host may not have given us.
        least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (least, least))


def nofile_bounds() -> tuple[int, int]:
    """Soft and hard limit of descriptors for a command, at most what we have ourselves."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = NOFILE_HARD if hard == resource.RLIM_INFINITY else min(hard, NOFILE_HARD)
    return min(NOFILE_SOFT, bound), bound


def raise_own_nofile() -> None:
    """The spawner keeps about a dozen descriptors per sandbox."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
