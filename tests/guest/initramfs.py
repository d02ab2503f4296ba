"""The guest's first files: an archive of busybox, the kernel's modules and `init.sh`, and a second one per boot.

The kernel unpacks several archives one after the other (Documentation/driver-api/early-userspace/buffer-format.rst), so
that what is the same for every boot is made once.
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).parent

#: With all that they need, in this order. crc32c is asked for by name by ext4, which kmod cannot know.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "virtiofs",
    "overlay",
    "veth",
    "bridge",
    "loop",
    "quota_v2",
)

_DIRECTORIES = ("bin", "dev", "host", "layer", "modules", "new", "proc", "sys")


def archive(files: Mapping[str, bytes], directories: Iterable[str] = ()) -> bytes:
    """A cpio archive of the kind `newc`; files are executable, their order and times fixed."""
    parts = [_entry(name, stat.S_IFDIR | 0o755, b"") for name in directories]
    parts += [_entry(name, stat.S_IFREG | 0o755, content) for name, content in files.items()]
    parts.append(_entry("TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and special device (major, minor), length of the name, checksum
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def release_of(tree: Path) -> str:
    """The kernel's release, from the one kernel in an unpacked tree."""
    (kernel,) = tree.glob("boot/vmlinuz-*")
    return kernel.name.removeprefix("vmlinuz-")


def base(cache: Path) -> Path:
    """The archive that every boot begins with; made where it is missing or older than what it is made of."""
    tree = cache / "tree"
    recipe = [Path(__file__).read_bytes(), (HERE / "init.sh").read_bytes(), (cache / "stamp").read_bytes()]
    path = cache / f"initramfs-{hashlib.sha256(b''.join(recipe)).hexdigest()[:16]}"
    if not path.exists():
        modules = _modules(tree)
        files = {
            "init": (HERE / "init.sh").read_bytes(),
            "bin/busybox": (tree / "bin/busybox").read_bytes(),
            "modules/list": "".join(f"{module.name}\n" for module in modules).encode(),
        }
        files |= {f"modules/{module.name}": module.read_bytes() for module in modules}
        new = path.with_suffix(f".{id(files)}")
        new.write_bytes(archive(files, _DIRECTORIES))
        for old in cache.glob("initramfs-????????????????"):
            old.unlink(missing_ok=True)
        new.rename(path)
    return path


def _modules(tree: Path) -> list[Path]:
    """The files of MODULES and of what each needs, in the order in which they can be loaded."""
    release = release_of(tree)
    subprocess.run(["depmod", "-b", tree, release], executable=tree / "bin/kmod", check=True)
    found: dict[Path, None] = {}
    for name in MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", tree, "-S", release, "--show-depends", name],
            executable=tree / "bin/kmod",
            check=True,
            capture_output=True,
            text=True,
        )
        for line in shown.stdout.splitlines():
            verb, path = line.split(maxsplit=1)
            if verb == "insmod":
                found[Path(path.strip())] = None
    return list(found)
