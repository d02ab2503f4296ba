"""One boot of the guest: QEMU, virtiofsd and a disk, from nothing to the exit status of the command inside.

    this process --unshare, ro bind of /, exec--> virtiofsd <--socket-- QEMU --port--> stdout
                 <------------------- status file ----------------------- --port 2
                                                                          --serial--> console file

Whatever happens to this process, nothing of it stays: both programs die with it (PDEATHSIG), the bind lives in
virtiofsd's mount namespace, and files are in a directory that the next boot removes when nobody holds its lock.

The guest reads the host's files and can write none: they are bound read-only before virtiofsd, which is all that it
can talk to. It has no network.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.guest import initramfs
from tests.support.guest import MARK

#: From QEMU's start to `up`: 2 s on an idle machine without KVM, more beside others.
BOOT_LIMIT_S = 120.0
#: From the exit of the command to the end of QEMU.
DOWN_LIMIT_S = 30.0
_SOCKET_LIMIT_S = 10.0
_LOOK_S = 0.02
_TAIL_LINES = 40


#: Only version 2 has the controllers. The rest makes emulation quicker and its clock steady.
_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 reboot=t cgroup_no_v1=all nokaslr mitigations=off "
    f"tsc=reliable no_timer_check clocksource=tsc {MARK}"
)

#: In a mount namespace of its own. Each mount is made read-only by itself; one that cannot be is an end with a message.
_SERVE = """
set -eu
place=$1 lib=$2
shift 2
mount --rbind / "$place"
for hidden in proc sys dev run; do
    mountpoint -q "$place/$hidden" && umount --recursive --lazy "$place/$hidden"
done
findmnt --list --noheadings --output TARGET --raw | while read -r target; do
    target=$(printf '%b' "$target")
    case $target in "$place" | "$place"/*) mount -o remount,bind,ro "$target" ;; esac
done
export LD_LIBRARY_PATH=$lib
exec "$@"
"""


class GuestError(Exception):
    """The guest did not tell how the command ended; in words, with the end of its console."""


@dataclass(frozen=True, slots=True)
class Size:
    """What the guest gets."""

    cpus: int = 2
    memory_mib: int = 2048
    #: Its ext4 file system is the guest's /tmp. Only what is written takes room on the host.
    disk_mib: int = 2048


def run(
    cache: Path, command: Sequence[str], *, environment: Mapping[str, str], cwd: Path, size: Size, limit_s: float
) -> int:
    """The exit status of the command in a guest of its own; its output goes to our stdout.

    `cache`: what fetch.sh made. Raises GuestError: it did not come up, died, or took longer than limit_s.
    """
    if os.geteuid() != 0:
        raise GuestError("the guest is given the host's files by virtiofsd, which needs root")
    with ExitStack() as stack:
        place = stack.enter_context(directory(cache / "boots"))
        script = _script(command, environment, cwd)
        (place / "initramfs").write_bytes(initramfs.base(cache).read_bytes() + script)
        _make_disk(place / "disk", size.disk_mib)
        server = stack.enter_context(_process(_virtiofsd(cache, place), place / "virtiofsd.log"))
        _wait_for_socket(place, server)
        output, theirs = os.pipe()
        stack.callback(os.close, output)
        try:
            program = _qemu(cache, place, size, theirs)
            stack.enter_context(_process(program, place / "qemu.log", _libraries(cache / "tree"), theirs))
        finally:
            os.close(theirs)
        return Boot(place, output).wait(limit_s)


def _script(command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> bytes:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"cd {shlex.quote(str(cwd))} || exit", f"exec {shlex.join(command)}", ""]
    main = (initramfs.HERE / "main.sh").read_bytes()
    return initramfs.archive({"command.sh": "\n".join(lines).encode(), "main.sh": main})


@contextmanager
def directory(parent: Path) -> Iterator[Path]:
    """A directory for one boot; those that killed boots left are removed."""
    parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        with _locked(parent):  # else another's look comes between the directory and its lock
            for old in parent.iterdir():
                with suppress(BlockingIOError), _locked(old, fcntl.LOCK_NB):
                    shutil.rmtree(old, ignore_errors=True)
            place = Path(tempfile.mkdtemp(dir=parent))
            stack.callback(shutil.rmtree, place)
            stack.enter_context(_locked(place))
        (place / "host").mkdir()
        (place / "status").touch()
        yield place


@contextmanager
def _locked(place: Path, flags: int = 0) -> Iterator[None]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(fd)


def _make_disk(path: Path, size_mib: int) -> None:
    with path.open("wb") as disk:
        disk.truncate(size_mib << 20)
    mke2fs = shutil.which("mke2fs") or "/sbin/mke2fs"
    done = subprocess.run(
        [mke2fs, "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", path],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise GuestError(f"cannot make the guest's disk: {done.stderr.strip()}")


def _libraries(tree: Path) -> dict[str, str]:
    """Where the fetched programs find the libraries that this system lacks."""
    places = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")
    return {"LD_LIBRARY_PATH": ":".join(str(tree / place) for place in places)}


def _virtiofsd(cache: Path, place: Path) -> list[str]:
    serve = [
        str(cache / "tree/usr/lib/qemu/virtiofsd"),
        f"--socket-path={place}/files.sock",
        *("-o", f"source={place}/host", "-o", "sandbox=chroot", "-o", "cache=always"),
        *("--rlimit-nofile=0", "--thread-pool-size=4"),
    ]
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SERVE, "sh"]
    return [*private, str(place / "host"), _libraries(cache / "tree")["LD_LIBRARY_PATH"], *serve]


def _qemu(cache: Path, place: Path, size: Size, output: int) -> list[str]:
    tree = cache / "tree"
    release = initramfs.release_of(tree)
    accelerator = os.environ.get("GUEST_ACCEL", "tcg,thread=multi,tb-size=256")
    return [
        str(tree / "usr/bin/qemu-system-x86_64"),
        *("-L", str(tree / "usr/share/qemu"), "-L", str(tree / "usr/share/seabios")),
        # Attacks run in there: what breaks out finds little to do.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-accel", accelerator, "-M", "q35,sata=off,smbus=off,usb=off", "-cpu", "max,la57=off"),
        *("-m", str(size.memory_mib), "-smp", str(size.cpus), "-nodefaults", "-no-reboot", "-display", "none"),
        *("-object", f"memory-backend-memfd,id=memory,size={size.memory_mib}M,share=on", "-numa", "node,memdev=memory"),
        *("-chardev", f"socket,id=files,path={place}/files.sock"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
        *("-drive", f"file={place}/disk,format=raw,if=virtio,cache=unsafe"),
        *("-serial", f"file:{place}/console", "-device", "virtio-serial-pci"),
        # Not stdio: at the end of its input it counts as closed, and the guest would wait for it forever.
        *("-add-fd", f"fd={output},set=1", "-chardev", "file,id=output,path=/dev/fdset/1,append=on"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *("-chardev", f"file,id=status,path={place}/status", "-device", "virtserialport,chardev=status,name=status"),
        *("-kernel", str(tree / f"boot/vmlinuz-{release}"), "-initrd", str(place / "initramfs")),
        *("-append", _KERNEL_ARGUMENTS),
    ]


@contextmanager
def _process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, *given: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that dies with us, whatever becomes of us. `log`: its output; `given`: descriptors that it gets."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environment or {})},
            pass_fds=given,
            start_new_session=True,  # an interrupt from the keyboard is ours to handle
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for_socket(place: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SOCKET_LIMIT_S
    while not (place / "files.sock").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise GuestError(f"virtiofsd does not serve: {(place / 'virtiofsd.log').read_text().strip()}")
        time.sleep(_LOOK_S)


class Boot:
    """Hands the guest's output on, and reads what it says on its status port: `up SECONDS`, then `exit NUMBER`."""

    def __init__(self, place: Path, output: int) -> None:
        """`place`: the boot's directory; `output`: a pipe that only QEMU writes to, so that its end is QEMU's."""
        self._place = place
        self._output = output
        self._began = time.monotonic()

    def _waited_s(self) -> float:
        return time.monotonic() - self._began

    def wait(self, limit_s: float) -> int:
        """The exit status of the command. Raises GuestError."""
        is_up = False
        while self._hand_on():
            said = self._said()
            if "up" in said and not is_up:
                is_up = True
                _say(f"up after {self._waited_s():.1f} s")
            if "exit" in said:
                return self._end(int(said["exit"]))
            if self._waited_s() > limit_s or (not is_up and self._waited_s() > BOOT_LIMIT_S):
                what = "the command did not end" if is_up else "it did not come up"
                raise GuestError(f"{what} within {self._waited_s():.0f} s\n{self._tail()}")
        said = self._said()  # QEMU is gone
        if "exit" not in said:
            raise GuestError(f"it ended before the command did\n{self._tail()}")
        return self._end(int(said["exit"]))

    def _end(self, status: int) -> int:
        """All of the output is here when QEMU has closed its end."""
        deadline = time.monotonic() + DOWN_LIMIT_S
        while self._hand_on():
            if time.monotonic() > deadline:
                _say("did not end by itself")
                break
        _say(f"exit {status} after {self._waited_s():.0f} s")
        return status

    def _hand_on(self) -> bool:
        """A little of the output; False at its end."""
        ready, _, _ = select.select([self._output], [], [], _LOOK_S)
        if not ready:
            return True
        data = os.read(self._output, 1 << 16)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return bool(data)

    def _said(self) -> dict[str, str]:
        lines = (self._place / "status").read_text().splitlines(keepends=True)
        return dict(line.split(maxsplit=1) for line in lines if line.endswith("\n"))

    def _tail(self) -> str:
        """The ends of what QEMU and the guest's console said."""
        lines: list[str] = []
        for name in ("qemu.log", "console"):
            path = self._place / name
            if path.exists():
                lines += [f"--- {name}", *path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]]
        return "\n".join(lines)


def _say(text: str) -> None:
    print(f"guest: {text}", file=sys.stderr, flush=True)


def die_in_order() -> None:
    """Ends by SystemExit on SIGTERM and SIGHUP, so that what was begun is taken down."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
