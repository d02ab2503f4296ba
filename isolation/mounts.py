"""What a sandbox sees of the file system: how it is made. What of the host is shown is `isolation/shown.py`'s.

Once, in the spawner: a root made of a small tmpfs, with the host's top-level directories bound into it, read-only,
without setuid programs and device nodes; hidden places are empty instead, and of /var a few directories are there;
/sys is a fresh one, without the host's network interfaces and what is mounted in it (cgroups, debugfs), masked; /dev
is a template of our own. The spawner pivots into that root, so that a sandbox's own copy of it costs next to nothing:
about a microsecond for each mount in it.

Per sandbox, in its own mount namespace: fresh /proc, /tmp and /dev/pts, its scratch directory at SCRATCH_DIR, and its
mounts. A host path travels as a detached tree: opened without following links, copied by open_tree in the host's
mount namespace (which the spawner enters for a moment; from its own, binding by path or descriptor is refused),
attached by move_mount in the child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from isolation import _sandbox as sys_
from isolation import kernel, rootless_view, shown
from isolation.config import SpawnerConfig
from isolation.errors import SpawnerLost, StepFailed, explain
from isolation.spec import SCRATCH_DIR, BindMount

#: Where all scratch directories are in the spawner's view; each child binds its own and covers this with EMPTY.
STAGE = "/.pilfer"
EMPTY = "/.pilfer-empty"

#: Fresh in each sandbox, so that what is to be mounted below can only be mounted there.
PER_SANDBOX = ("/tmp", SCRATCH_DIR)  # noqa: S108  (the sandbox's own)

#: Names for mount targets; a file system full of them answers ENOSPC.
_ROOT_OPTIONS = "mode=755,size=16m,nr_inodes=20000"
_COVER_OPTIONS = "mode=755,size=1m,nr_inodes=1000"

_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
    "shm": "/tmp",  # noqa: S108  (each sandbox's own tmpfs)  One tmpfs for both saves a mount per sandbox.
}

_TREE = sys_.MS_NOSUID | sys_.MS_NODEV


@dataclass(frozen=True, slots=True)
class Attachment:
    """A detached tree and where the child puts it. `parents` are made there first, outermost first."""

    fd: int
    target: str
    is_dir: bool
    parents: tuple[str, ...]


class View:
    """The root that sandboxes copy. Built once; the process that builds it is in it afterwards."""

    def __init__(
        self, config: SpawnerConfig, proc_fd: int, *, is_ordinary: bool = False, is_confined: bool = False
    ) -> None:
        """is_ordinary: this is no root but an ordinary user, in a user namespace of its own. is_confined: the root of
        somebody else's, a container's."""
        flags = os.O_RDONLY | os.O_CLOEXEC
        self._host_root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self._host_namespace = os.open("self/ns/mnt", flags, dir_fd=proc_fd)
        #: Shares that lie where every sandbox has a mount of its own: attached per sandbox like its own mounts.
        #: Their sources are trusted as the node's own setting, so links are followed, once.
        shares = [replace(share, target=check_target(share.target)) for share in config.shares]
        self._late_shares = tuple(
            replace(share, source=str(Path(share.source).resolve()))
            for share in shares
            if _is_per_sandbox(share.target)
        )
        #: Files in /proc that each sandbox covers in its own.
        self.masked_in_proc = tuple(shown.masked_in_proc(proc_fd))
        kernel.unshare(sys_.CLONE_NEWNS)
        kernel.mount("", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)
        early_shares = [share for share in shares if not _is_per_sandbox(share.target)]
        self._bound = _build(config, early_shares, proc_fd, is_ordinary=is_ordinary or is_confined)
        self._root_writable = kernel.open_tree(kernel.AT_FDCWD, ".", recursive=False)
        _make_read_only(".")
        kernel.pivot_root_here()
        self._own_namespace = os.open("self/ns/mnt", flags, dir_fd=proc_fd)
        self._own_root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        if is_ordinary:
            self._cover_on_host(config.hidden)

    def _cover_on_host(self, hidden: Sequence[Path]) -> None:
        """Covers the node's own directories where mounts are taken from, which for an ordinary user is his spawner's
        own copy of the host's: tasks have the rights of the node's user, and a mount or share may hold them."""
        kernel.setns(self._host_namespace, sys_.CLONE_NEWNS)
        try:
            for path in hidden:
                if path.is_dir():
                    _make_read_only(_cover(str(path)))
        finally:
            self._come_back()

    def attach(self, mounts: Sequence[BindMount]) -> list[Attachment]:
        """Detached trees for these mounts and the shares that must be attached per sandbox. Raises StepFailed.

        The caller closes the descriptors.
        """
        wanted = (*self._late_shares, *mounts)
        made: list[Attachment] = []
        try:
            for mount in wanted:
                attachment = self._attachment(mount)
                # The child makes them as root, and must make nothing in a directory of the host's: where a target lies
                # in a mount, it is there or the mount fails.
                if any(_is_below(attachment.target, earlier.target) for earlier in made):
                    attachment = replace(attachment, parents=())
                made.append(attachment)
        except BaseException:
            for attachment in made:
                os.close(attachment.fd)
            raise
        return made

    def _attachment(self, mount: BindMount) -> Attachment:
        target = check_target(mount.target)
        fd, is_dir = self._copy(mount)
        try:
            parents = self._prepare_target(target, is_dir=is_dir)
        except BaseException:
            os.close(fd)
            raise
        return Attachment(fd, target, is_dir, parents)

    def _copy(self, mount: BindMount) -> tuple[int, bool]:
        """A detached copy of the source, and whether it is a directory."""
        if not mount.source.startswith("/"):
            raise StepFailed("mount", errno.EINVAL, mount.source, f"{mount.source}: a mount's source must be absolute")
        try:
            source = kernel.open_without_links(self._host_root, mount.source.strip("/") or ".", os.O_PATH)
        except OSError as error:
            raise _source_failed(mount, error) from error
        try:
            mode = os.fstat(source).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                words = f"{mount.source}: only directories and regular files can be mounted"
                raise StepFailed("mount", errno.EINVAL, mount.source, words)
            kernel.setns(self._host_namespace, sys_.CLONE_NEWNS)
            try:
                tree = kernel.open_tree(source, "", recursive=True)
            finally:
                self._come_back()
        except OSError as error:
            raise _source_failed(mount, error) from error
        finally:
            os.close(source)
        try:
            kernel.set_attributes(tree, kernel.SAFE_READ_ONLY if mount.read_only else kernel.SAFE, recursive=True)
        except OSError as error:
            os.close(tree)
            raise _source_failed(mount, error) from error
        return tree, stat.S_ISDIR(mode)

    def _come_back(self) -> None:
        """Into our own namespace and root. Entering a mount namespace sets the root to its lowest mount, which is not
        ours where the node itself was started in a chroot (setns(2); an initramfs cannot be pivoted away).

        Raises SpawnerLost: the next sandbox would be cloned in the host's."""
        try:
            kernel.setns(self._own_namespace, sys_.CLONE_NEWNS)
            os.fchdir(self._own_root)
            os.chroot(".")
        except OSError as error:
            raise SpawnerLost(f"cannot leave the host's mount namespace: {error}") from error

    def _prepare_target(self, target: str, *, is_dir: bool) -> tuple[str, ...]:
        """Makes the mount point, or says what the child has to make. Raises StepFailed."""
        if _is_per_sandbox(target):
            base = next(p for p in PER_SANDBOX if _is_below(target, p))
            return tuple(_chain(target, base))
        if any(_is_below(target, bound) for bound in self._bound):
            try:
                there = stat.S_ISDIR(os.stat(target).st_mode)  # noqa: PTH116  (one call, no object)
            except OSError as error:
                words = (
                    f"{target}: {os.strerror(error.errno or 0)}: a mount's target must exist on the host, "
                    f"or lie below a hidden or a new top-level name (/mnt, /data), /tmp or {SCRATCH_DIR}"
                )
                raise StepFailed("mount", error.errno or 0, target, words) from error
            if there != is_dir:
                raise StepFailed("mount", errno.ENOTDIR, target, f"{target}: source and target are not of one kind")
            return ()
        try:
            _make_target(target.lstrip("/"), is_dir=is_dir, dir_fd=self._root_writable)
        except OSError as error:
            raise StepFailed("mount", error.errno or 0, target) from error
        return ()


def check_target(target: str) -> str:
    """The target in its plain form. Raises StepFailed where nothing may be mounted there."""
    parts = PurePosixPath(target).parts
    if not target.startswith("/") or len(parts) < 2 or ".." in parts or parts[1] in (*shown.OWN, STAGE[1:], EMPTY[1:]):
        words = f"{target!r}: a mount's target must be an absolute path without .., and not /, /proc, /dev or /sys"
        raise StepFailed("mount", errno.EINVAL, target, words)
    plain = "/" + "/".join(parts[1:])
    for name, leads_to in shown.LINKS_IN_VAR.items():
        if _is_below(plain, f"/var/{name}"):
            return leads_to + plain[len(f"/var/{name}") :]
    return plain


def _source_failed(mount: BindMount, error: OSError) -> StepFailed:
    detail = explain(error.errno or 0, mount.source)
    if error.errno == errno.ELOOP:
        detail = f"{mount.source}: a part of this path is a symbolic link; give the path that it leads to"
    return StepFailed("mount", error.errno or 0, mount.source, detail)


def _is_below(path: str, base: str) -> bool:
    return path == base or path.startswith(base + "/")


def _is_per_sandbox(target: str) -> bool:
    return any(_is_below(target, base) for base in PER_SANDBOX)


def _chain(target: str, base: str) -> Iterator[str]:
    """`/tmp/a/b` below `/tmp`: /tmp/a, /tmp/a/b."""
    current = base
    for part in target[len(base) :].strip("/").split("/"):
        if part:
            current = f"{current}/{part}"
            yield current


def _make_target(relative: str, *, is_dir: bool, dir_fd: int | None = None) -> None:
    """Makes a mount point and what leads to it; what is there already is fine."""
    parts = relative.split("/")
    for i in range(1, len(parts) + (1 if is_dir else 0)):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(parts[:i]), 0o755, dir_fd=dir_fd)
    if not is_dir:
        with contextlib.suppress(FileExistsError):
            os.mknod(relative, stat.S_IFREG | 0o444, dir_fd=dir_fd)


def _build(
    config: SpawnerConfig, wanted_shares: Sequence[BindMount], proc_fd: int, *, is_ordinary: bool
) -> frozenset[str]:
    """Makes the root in a tmpfs that becomes the current directory; gives the paths at which the host's are bound."""
    trees = dict(_host_trees())
    sockets = shown.bound_sockets(Path("/proc/self/net/unix").read_text(errors="surrogateescape"))
    ordinary = _Ordinary() if is_ordinary else None
    scratch = kernel.open_tree(kernel.AT_FDCWD, str(config.scratch_root), recursive=False)
    kernel.set_attributes(scratch, kernel.SAFE, recursive=False)
    shares = [_share_tree(share) for share in (*wanted_shares, *_resolver())]
    # Resolved now: a link means another place in the host's root than in ours.
    hidden = [str(path.resolve()).lstrip("/") for path in config.hidden]
    taken = (*shown.HIDDEN, *shown.OWN)
    links = {path.name: path.readlink() for path in Path("/").iterdir() if path.is_symlink() and path.name not in taken}
    sys_tree = _sys_tree(proc_fd, is_ordinary=is_ordinary)

    kernel.mount("tmpfs", "/tmp", "tmpfs", _TREE, _ROOT_OPTIONS)  # noqa: S108  (only a place, in our own namespace)
    os.chdir("/tmp")  # noqa: S108  (as above)
    for name, target in links.items():
        Path(name).symlink_to(target)
    for name in (*taken, SCRATCH_DIR.lstrip("/")):
        Path(name).mkdir(mode=0o755)
    for name, leads_to in shown.LINKS_IN_VAR.items():
        Path("var", name).symlink_to(f"..{leads_to}")
    for name, fd in trees.items():
        _put(fd, name, is_dir=True)
    _put(sys_tree, "sys", is_dir=True)
    if ordinary is not None:
        _put(ordinary.proc_tree, "proc", is_dir=True)
    masked = [f"sys/{name}" for name in shown.MASKED_IN_SYS] + ([] if ordinary is None else ordinary.covered)
    covers = [_cover(path) for path in masked if Path(path).is_dir()]
    _put_devices(None if ordinary is None else ordinary.devices)
    _cover_sockets(sockets)
    for share, (fd, is_dir) in shares:
        try:
            _put(fd, share.target.strip("/"), is_dir=is_dir)
        except OSError as error:
            raise StepFailed("share", error.errno or 0, share.target) from error
    # After the shares, which may hold them.
    covers += [_cover(path) for path in hidden if Path(path).is_dir()]
    Path(EMPTY.lstrip("/")).mkdir(mode=0o755)
    stage = Path(STAGE.lstrip("/"))
    stage.mkdir(mode=0o700)
    _put(scratch, str(stage), is_dir=True)
    for cover in covers:
        _make_read_only(cover)
    return frozenset(f"/{name}" for name in (*trees, *links))


class _Ordinary:
    """What the host has for an ordinary user's view, taken before it is covered."""

    def __init__(self) -> None:
        self.devices = rootless_view.device_trees(_DEVICES)
        self.proc_tree = kernel.open_tree(kernel.AT_FDCWD, "/proc", recursive=True)
        mountinfo = Path("/proc/self/mountinfo").read_text()
        in_sys = rootless_view.mounted_below("/sys", mountinfo)
        #: To be covered, before the shares, which may lie in them.
        self.covered = [path.lstrip("/") for path in (*in_sys, *rootless_view.homes(os.geteuid()))]


def _host_trees() -> Iterator[tuple[str, int]]:
    """A read-only copy of each directory of the host that is shown, by its path without the first slash."""
    for entry in sorted(os.scandir("/"), key=lambda e: e.name):
        if entry.name not in (*shown.HIDDEN, *shown.OWN) and entry.is_dir(follow_symlinks=False):
            yield entry.name, _read_only_copy(entry.path)
    for name in shown.shown_in_var(Path("/var")):
        yield f"var/{name}", _read_only_copy(f"/var/{name}")


def _read_only_copy(path: str) -> int:
    fd = kernel.open_tree(kernel.AT_FDCWD, path, recursive=True)
    kernel.set_attributes(fd, kernel.SAFE_READ_ONLY, recursive=True)
    return fd


def _sys_tree(proc_fd: int, *, is_ordinary: bool) -> int:
    """A read-only /sys, without the host's network interfaces where we can make our own."""
    is_ours = True
    try:
        if is_ordinary:
            rootless_view.mount_sys()
        else:
            _mount_sys(proc_fd)
    except OSError:  # a container may not be allowed to mount one; then it is the host's
        is_ours = False
    # An ordinary user cannot have the host's without what is mounted in it, which is covered.
    is_whole = is_ordinary and not is_ours
    tree = kernel.open_tree(kernel.AT_FDCWD, "/sys", recursive=is_whole)
    kernel.set_attributes(tree, kernel.SAFE_READ_ONLY | sys_.MOUNT_ATTR_NOEXEC, recursive=is_whole)
    return tree


def _mount_sys(proc_fd: int) -> None:
    """Over the host's, for us alone: it shows the interfaces of the network namespace that it is mounted in."""
    own = os.open("self/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        kernel.unshare(sys_.CLONE_NEWNET)
        try:
            kernel.mount("sysfs", "/sys", "sysfs", _TREE | sys_.MS_NOEXEC)
        finally:
            kernel.setns(own, sys_.CLONE_NEWNET)
    finally:
        os.close(own)


def _cover_sockets(paths: Iterator[str]) -> None:
    """Of what is in the view below the current directory: sockets that everybody may use, under the null device."""
    found = [relative for path in paths if shown.is_open_socket(relative := path.lstrip("/"))]
    for relative in found[: shown.SOCKETS_MAX]:
        null = kernel.open_tree(kernel.AT_FDCWD, "dev/null", recursive=False)
        kernel.move_mount(null, relative)
        os.close(null)


def _resolver() -> Iterator[BindMount]:
    """Where systemd-resolved writes the name servers, /etc/resolv.conf leads into /run, which is hidden."""
    resolver = Path("/etc/resolv.conf").resolve()
    if resolver.is_file() and resolver.parts[1] in shown.HIDDEN:
        yield BindMount(str(resolver), str(resolver))


def _share_tree(share: BindMount) -> tuple[BindMount, tuple[int, bool]]:
    try:
        is_dir = Path(share.source).is_dir()
        fd = kernel.open_tree(kernel.AT_FDCWD, share.source, recursive=True)
        kernel.set_attributes(fd, kernel.SAFE_READ_ONLY if share.read_only else kernel.SAFE, recursive=True)
    except OSError as error:
        raise StepFailed("share", error.errno or 0, share.source) from error
    return share, (fd, is_dir)


def _put(fd: int, target: str, *, is_dir: bool) -> None:
    """Attaches a tree below the current directory, on a mount point made for it."""
    _make_target(target, is_dir=is_dir)
    kernel.move_mount(fd, target)
    os.close(fd)


def _cover(relative: str) -> str:
    kernel.mount("tmpfs", relative, "tmpfs", _TREE | sys_.MS_NOEXEC, _COVER_OPTIONS)
    return relative


def _make_read_only(path: str) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    kernel.set_attributes(fd, sys_.MOUNT_ATTR_RDONLY, recursive=False)
    os.close(fd)


def _put_devices(trees: dict[str, int] | None) -> None:
    """Makes /dev. trees: the host's own nodes, where none can be made."""
    kernel.mount("tmpfs", "dev", "tmpfs", sys_.MS_NOSUID | sys_.MS_NOEXEC, _COVER_OPTIONS)
    if trees is None:
        for name, (major, minor) in _DEVICES.items():
            path = Path("dev", name)
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            path.chmod(0o666)
    else:
        rootless_view.put_devices(trees, Path("dev"))
    for name, target in _LINKS.items():
        Path("dev", name).symlink_to(target)
    Path("dev/pts").mkdir()
    _make_read_only("dev")
