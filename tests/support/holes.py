"""Whether files can have holes here, which output beyond its limit needs."""

from __future__ import annotations

import os
from pathlib import Path

from node.core.log_cap import Span
from node.running.log_watch import punch

_SIZE = 1 << 20


def can_punch(directory: Path) -> bool:
    path = directory / "probe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"x" * _SIZE)
        punch(fd, Span(0, _SIZE // 2))
    except OSError:
        return False
    else:
        return os.lseek(fd, 0, os.SEEK_DATA) == _SIZE // 2
    finally:
        os.close(fd)
        path.unlink()
