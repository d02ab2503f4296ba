"""What is shown of the host: the parts that can be told without a sandbox."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from isolation import shown

NET_UNIX = """Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 10 /opt/stream with blanks
0000000000000000: 00000002 00000000 00000000 0002 01 11 /opt/datagram
0000000000000000: 00000003 00000000 00000000 0001 03 12 /opt/connected
0000000000000000: 00000002 00000000 00010000 0001 01 13 @/abstract
0000000000000000: 00000002 00000000 00010000 0001 01 14 relative
0000000000000000: 00000003 00000000 00000000 0001 03 15
0000000000000000: 00000002 00000000 00010000 0005 01 16 /run/seqpacket
"""


def test_sockets_that_somebody_waits_at() -> None:
    assert list(shown.bound_sockets(NET_UNIX)) == ["/opt/stream with blanks", "/opt/datagram", "/run/seqpacket"]


def test_sockets_that_everybody_may_use(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        now = Path("/proc/self/net/unix").read_text(errors="surrogateescape")
        assert str(path) in shown.bound_sockets(now)
        for mode, is_open in ((0o777, True), (0o602, True), (0o770, False), (0o755, False)):
            path.chmod(mode)
            assert shown.is_open_socket(str(path)) is is_open, oct(mode)
    (tmp_path / "file").touch(0o666)
    (tmp_path / "link").symlink_to(path)
    for other in ("file", "link", "absent"):
        assert not shown.is_open_socket(str(tmp_path / other))


def test_of_var_only_real_directories_of_the_list(tmp_path: Path) -> None:
    for name in ("lib/dpkg", "lib/postgresql", "cache/fontconfig", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lib/rpm").symlink_to("/usr/lib")
    (tmp_path / "lib/texmf").touch()
    assert list(shown.shown_in_var(tmp_path)) == ["lib/dpkg", "cache/fontconfig"]


def test_masked_are_those_that_everybody_could_read(tmp_path: Path) -> None:
    for name, mode in (("keys", 0o444), ("interrupts", 0o444), ("timer_list", 0o400), ("other", 0o444)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert list(shown.masked_in_proc(fd)) == ["keys", "interrupts"]
    finally:
        os.close(fd)
