"""Calls that no task has any business with, each by its number (x86_64), with arguments that make no sense.

A kernel that gets to look at such arguments answers EBADF, EFAULT or EINVAL, or does nothing; what is refused before
answers EPERM or ENOSYS. So this tells whether a call can be reached at all, without doing anything.
"""

from attempts import attempt_aside, say, syscall

#: An address where nothing is.
NOWHERE = 8
BAD_FD = -1

CALLS = {
    # mounts and namespaces
    "mount": (165, NOWHERE, NOWHERE, NOWHERE, 0, 0),
    "umount2": (166, NOWHERE, 0),
    "pivot_root": (155, NOWHERE, NOWHERE),
    "chroot": (161, NOWHERE),
    "unshare": (272, 0x10000000 | 0x1),
    "setns": (308, BAD_FD, 0),
    "open_tree": (428, BAD_FD, NOWHERE, 1),
    "move_mount": (429, BAD_FD, NOWHERE, BAD_FD, NOWHERE, 0),
    "fsopen": (430, NOWHERE, 0),
    "fsconfig": (431, BAD_FD, 6, 0, 0, 0),
    "fsmount": (432, BAD_FD, 0, 0),
    "fspick": (433, BAD_FD, NOWHERE, 0),
    "mount_setattr": (442, BAD_FD, NOWHERE, 0, NOWHERE, 32),
    "open_tree_attr": (467, BAD_FD, NOWHERE, 1, NOWHERE, 32),
    "open_by_handle_at": (304, BAD_FD, NOWHERE, 0),
    "name_to_handle_at": (303, BAD_FD, NOWHERE, NOWHERE, NOWHERE, 0),
    "quotactl": (179, 0x800001 << 8, NOWHERE, 0, 0),
    "quotactl_fd": (443, BAD_FD, 0x800001 << 8, 0, 0),
    "fanotify_init": (300, 0x200, 99 << 24),
    # other processes
    "ptrace": (101, 16, 0x7FFFFFFF, 0, 0),
    "process_vm_readv": (310, 1, NOWHERE, 1, NOWHERE, 1, 1),
    "process_vm_writev": (311, 1, NOWHERE, 1, NOWHERE, 1, 1),
    "process_madvise": (440, BAD_FD, NOWHERE, 1, 20, 0),
    "pidfd_getfd": (438, BAD_FD, 0, 0),
    "kcmp": (312, 0x7FFFFFFF, 0x7FFFFFFF, 0, 0, 0),
    # large doors into the kernel
    "bpf": (321, 0, NOWHERE, 4096),
    "perf_event_open": (298, NOWHERE, 0, -1, -1, 0),
    "userfaultfd": (323, 0x40000001),
    "io_uring_setup": (425, 1, NOWHERE),
    "io_uring_enter": (426, BAD_FD, 0, 0, 0, 0),
    "io_uring_register": (427, BAD_FD, 0, 0, 0),
    "add_key": (248, NOWHERE, NOWHERE, NOWHERE, 0, 0),
    "request_key": (249, NOWHERE, NOWHERE, NOWHERE, 0),
    "keyctl": (250, 999, 0, 0, 0, 0),
    "modify_ldt": (154, 99, NOWHERE, 0),
    # the machine
    "reboot": (169, 1, 2, 3, 0),
    "kexec_load": (246, 0, 99, NOWHERE, 0),
    "kexec_file_load": (320, BAD_FD, BAD_FD, 0, NOWHERE, 0),
    "init_module": (175, NOWHERE, 100, NOWHERE),
    "finit_module": (313, BAD_FD, NOWHERE, 0),
    "delete_module": (176, NOWHERE, 0),
    "swapon": (167, NOWHERE, 0),
    "swapoff": (168, NOWHERE),
    "acct": (163, NOWHERE),
    "syslog": (103, 99, 0, 0),
    "settimeofday": (164, NOWHERE, 0),
    "clock_settime": (227, 0, NOWHERE),
    "sethostname": (170, NOWHERE, 4),
    "setdomainname": (171, NOWHERE, 4),
    "iopl": (172, 99),
    "ioperm": (173, 1 << 40, 1, 1),
    "lookup_dcookie": (212, 0, NOWHERE, 0),
}


def main() -> None:
    for name, (number, *arguments) in CALLS.items():
        attempt_aside(name, lambda n=number, a=tuple(arguments): syscall(n, *a))
    say("done", "yes")


if __name__ == "__main__":
    main()
