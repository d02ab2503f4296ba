from collections.abc import Sequence

Word = int | bytes | None | list[int | bytes | list[int | bytes]]

def syscall(number: int, *args: int | bytes | bytearray | None) -> int: ...
def spawn(
    flags: int,
    cgroup_fd: int,
    calls: list[tuple[Word, ...]],
    paths: list[bytes],
    argv: list[bytes],
    envp: list[bytes],
    report_fd: int,
    number: int,
    /,
) -> int: ...
def read_note(number: int, /) -> tuple[int, int, int, int, int]: ...
def set_deadline(boottime_ns: int, /) -> None: ...
def needed_addresses() -> Sequence[int]: ...
def __getattr__(name: str) -> int: ...
