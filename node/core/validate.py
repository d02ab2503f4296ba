"""What a task spec may be: every rule, its source, and the words that tell a user what to do.

Takes the core's values, which can hold whatever the proto can carry, and gives one `Violation` per fault, each with
the path of its field relative to the spec. Nothing is repaired here: what is wrong is refused, by name. Whether a
host path exists is not asked here (that is the node's, at the start of the task).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from node.core.model import Mount, Network, Requirements, TaskSpec

#: execve(2): one argument or environment string, its NUL included (MAX_ARG_STRLEN, 32 pages).
ARGUMENT_MAX_BYTES = 128 * 1024
#: execve(2): all of them together, with a pointer each, within a quarter of the usual stack limit of 8 MiB,
#: less what the node itself adds (the task's ids, PATH) and what the kernel puts beside them.
ARGUMENTS_MAX_BYTES = 2 * 1024 * 1024 - 64 * 1024
_POINTER_BYTES = 8
#: A whole spec, which must fit into one etcd request of 1.5 MiB with its record around it.
SPEC_MAX_BYTES = 1024 * 1024
#: The kernel refuses CPU quotas below 1 ms in a period of 100 ms (sched-bwc).
CPU_MIN = 0.01
CPU_MAX = 100_000.0
#: Below this not even a static binary gets past exec in a memory cgroup.
MEMORY_MIN_BYTES = 1024 * 1024
SCRATCH_MIN_BYTES = 1024 * 1024
#: PID_MAX_LIMIT of 64-bit kernels (proc(5), pid_max).
PIDS_MAX = 4 * 1024 * 1024
#: Numbers in records are int64.
INT64_MAX = 2**63 - 1
TIMEOUT_MAX_S = 10 * 366 * 86_400.0
GRACE_MAX_S = 3600.0
ATTEMPTS_MAX = 1000
NAME_MAX_CHARS = 256
LABELS_MAX = 64
LABEL_KEY_MAX_CHARS = 128
LABEL_VALUE_MAX_CHARS = 256
MOUNTS_MAX = 100
#: The kernel's PATH_MAX, its NUL included.
PATH_MAX_BYTES = 4096
#: Violations told at once; a spec with 100,000 bad arguments needs no answer of megabytes.
VIOLATIONS_MAX = 20

#: Nothing may be mounted over these: the sandbox makes them itself.
_OWN_TREES = ("/proc", "/dev", "/sys")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault: where (a path relative to the spec, e.g. `mounts[0].target`), and what is wrong and allowed."""

    field: str
    message: str


def violations(spec: TaskSpec) -> list[Violation]:
    """Everything that is wrong with the spec itself, at most VIOLATIONS_MAX; empty: it may be stored."""
    found: list[Violation] = []
    for check in (_command, _environment, _paths, _size, _requirements, _times, _names, _mounts):
        for violation in check(spec):
            found.append(violation)
            if len(found) >= VIOLATIONS_MAX:
                return found
    return found


def task_id_violation(task_id: str) -> Violation | None:
    """A task id is a UUID in its canonical text: lower-case hex, 8-4-4-4-12."""
    if _UUID.fullmatch(task_id):
        return None
    return Violation(
        "id", f"'{_shown(task_id)}' is not a UUID in lower-case canonical form (8-4-4-4-12 hexadecimal digits)"
    )


def mounts_not_allowed(
    mounts: Sequence[Mount], allowed_prefixes: Iterable[str], shares: Iterable[tuple[str, bool]]
) -> list[Violation]:
    """Mounts that this node does not allow.

    allowed_prefixes: of --allow-mount; anything at or below them, read-only or read-write.
    shares: of --share, as (path, is read-only); what is at or below them, writable only where the share is.
    The caller's paths are absolute and normalised; symbolic links are resolved, and refused, by the spawner.
    """
    prefixes, shared = tuple(allowed_prefixes), tuple(shares)
    found = []
    for number, mount in enumerate(mounts):
        if any(_is_at_or_below(mount.source, prefix) for prefix in prefixes):
            continue
        sharing = [read_only for path, read_only in shared if _is_at_or_below(mount.source, path)]
        field = f"mounts[{number}].source"
        if not sharing:
            known = ", ".join((*prefixes, *(path for path, _ in shared))) or "none"
            message = (
                f"{_shown(mount.source)} may not be mounted: it is neither below an --allow-mount prefix nor a --share "
                f"path of this node (allowed: {known})"
            )
            found.append(Violation(field, message))
        elif all(sharing) and not mount.read_only:
            message = (
                f"{_shown(mount.source)} is shared read-only by this node: mount it :ro, or start the node with "
                f"--share PATH:rw or --allow-mount"
            )
            found.append(Violation(field, message))
    return found


def network_not_allowed(network: Network, *, allow_host_network: bool) -> list[Violation]:
    if network is Network.HOST and not allow_host_network:
        return [Violation("network", "this node gives no task the host's network (its setting: --allow-host-network)")]
    return []


def _is_at_or_below(path: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return path == prefix or path.startswith(prefix + "/")


def _shown(text: str) -> str:
    """A user's string as part of a message: short, and without what would act on a terminal."""
    text = text if len(text) <= 64 else text[:61] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _text(field: str, text: str) -> Iterator[Violation]:
    """What holds for every string that reaches the kernel."""
    if "\0" in text:
        yield Violation(field, "holds a NUL byte, which no command line, environment or path can carry")
    elif any("\ud800" <= c <= "\udfff" for c in text):
        yield Violation(field, "is not valid Unicode text (it holds a lone surrogate)")


def _argument(field: str, text: str) -> Iterator[Violation]:
    yield from _text(field, text)
    if _bytes(text) + 1 > ARGUMENT_MAX_BYTES:
        yield Violation(
            field,
            f"is {_bytes(text)} bytes long; the kernel allows {ARGUMENT_MAX_BYTES - 1} per string: "
            f"pass it on stdin or in a file",
        )


def _command(spec: TaskSpec) -> Iterator[Violation]:
    if not spec.command:
        yield Violation("command", "is empty: give a program's path, or a name to be looked up in PATH")
    elif _bytes(spec.command) + 1 > PATH_MAX_BYTES:
        yield Violation("command", f"is longer than a path can be ({PATH_MAX_BYTES - 1} bytes)")
    yield from _text("command", spec.command)
    for number, argument in enumerate(spec.args):
        yield from _argument(f"args[{number}]", argument)
    strings = [spec.command, *spec.args, *(f"{key}={value}" for key, value in spec.env.items())]
    total = sum(_bytes(text) + 1 + _POINTER_BYTES for text in strings)
    if total > ARGUMENTS_MAX_BYTES:
        yield Violation(
            "args",
            f"arguments and environment together take {total} bytes; the kernel allows about {ARGUMENTS_MAX_BYTES}: "
            f"pass them on stdin or in a file",
        )


def _environment(spec: TaskSpec) -> Iterator[Violation]:
    for key, value in spec.env.items():
        field = f'env["{_shown(key)}"]'
        if not key:
            yield Violation(field, "has an empty name")
        elif "=" in key:
            yield Violation(field, "has a name with '=' in it; the name ends at the first '='")
        yield from _text(field, key)
        if "\0" not in key:  # one complaint of this kind per variable
            yield from _text(field, value)
        size = _bytes(key) + 1 + _bytes(value) + 1
        if size > ARGUMENT_MAX_BYTES:
            yield Violation(
                field, f"is {size - 1} bytes long as NAME=VALUE; the kernel allows {ARGUMENT_MAX_BYTES - 1}"
            )


def _paths(spec: TaskSpec) -> Iterator[Violation]:
    if spec.cwd is not None:
        yield from _absolute("cwd", spec.cwd)


def _absolute(field: str, path: str) -> Iterator[Violation]:
    yield from _text(field, path)
    if not path.startswith("/"):
        yield Violation(field, f"'{_shown(path)}' is not an absolute path")
    elif _bytes(path) + 1 > PATH_MAX_BYTES:
        yield Violation(field, f"is longer than a path can be ({PATH_MAX_BYTES - 1} bytes)")


def _size(spec: TaskSpec) -> Iterator[Violation]:
    texts = [spec.command, *spec.args, spec.cwd or "", spec.name]
    texts += [text for pair in (*spec.env.items(), *spec.labels.items()) for text in pair]
    texts += [text for mount in spec.mounts for text in (mount.source, mount.target)]
    # What protobuf adds is two to five bytes a string; the limit leaves room for it.
    total = len(spec.stdin) + sum(_bytes(text) for text in texts)
    if total > SPEC_MAX_BYTES:
        largest = "stdin" if len(spec.stdin) * 2 > total else "args"
        yield Violation(
            largest,
            f"the whole task takes {total} bytes; the limit is {SPEC_MAX_BYTES} (1 MiB): put large input into a file "
            f"and mount it",
        )


def _requirements(spec: TaskSpec) -> Iterator[Violation]:
    needs: Requirements = spec.requirements
    field = "requirements."
    if not math.isfinite(needs.cpu) or not CPU_MIN <= needs.cpu <= CPU_MAX:
        yield Violation(field + "cpu", f"{needs.cpu:g} is not between {CPU_MIN:g} and {CPU_MAX:g} CPUs")
    if needs.memory_bytes is not None and not MEMORY_MIN_BYTES <= needs.memory_bytes <= INT64_MAX:
        wrong = "too little" if needs.memory_bytes < MEMORY_MIN_BYTES else "too much"
        yield Violation(
            field + "memory_bytes",
            f"{needs.memory_bytes} is {wrong}: at least {MEMORY_MIN_BYTES} (1 MiB), or leave it out to reserve none",
        )
    if not 1 <= needs.pids <= PIDS_MAX:
        yield Violation(field + "pids", f"{needs.pids} is not between 1 and {PIDS_MAX}")
    if needs.scratch_bytes is not None and not SCRATCH_MIN_BYTES <= needs.scratch_bytes <= INT64_MAX:
        wrong = "too little" if needs.scratch_bytes < SCRATCH_MIN_BYTES else "too much"
        yield Violation(
            field + "scratch_bytes", f"{needs.scratch_bytes} is {wrong}: at least {SCRATCH_MIN_BYTES} (1 MiB)"
        )
    for name in ("io_read_bytes_per_s", "io_write_bytes_per_s"):
        rate: int | None = getattr(needs, name)
        if rate is not None and not 1 <= rate <= INT64_MAX:
            yield Violation(field + name, f"{rate} is not a positive number of bytes per second")


def _times(spec: TaskSpec) -> Iterator[Violation]:
    timeout = spec.timeout_s
    if timeout is not None and not 0 < timeout <= TIMEOUT_MAX_S:  # false for NaN too
        yield Violation("timeout_s", f"{timeout:g} is not between 0 (excluded) and {TIMEOUT_MAX_S:.0f} s (ten years)")
    if not 0 <= spec.grace_s <= GRACE_MAX_S:
        yield Violation("grace_s", f"{spec.grace_s:g} is not between 0 and {GRACE_MAX_S:.0f} s (one hour)")
    if not 1 <= spec.max_attempts <= ATTEMPTS_MAX:
        yield Violation("max_attempts", f"{spec.max_attempts} is not between 1 and {ATTEMPTS_MAX}")


def _names(spec: TaskSpec) -> Iterator[Violation]:
    yield from _printable("name", spec.name, NAME_MAX_CHARS)
    if len(spec.labels) > LABELS_MAX:
        yield Violation("labels", f"are {len(spec.labels)}; at most {LABELS_MAX} are allowed")
    for key, value in spec.labels.items():
        field = f'labels["{_shown(key)}"]'
        if not key:
            yield Violation(field, "has an empty name")
        elif "=" in key:
            yield Violation(field, "has a name with '=' in it; a filter K=V could not find it")
        yield from _printable(field, key, LABEL_KEY_MAX_CHARS)
        yield from _printable(field, value, LABEL_VALUE_MAX_CHARS)


def _printable(field: str, text: str, max_chars: int) -> Iterator[Violation]:
    if len(text) > max_chars:
        yield Violation(field, f"is {len(text)} characters long; at most {max_chars} are allowed")
    elif not text.isprintable():
        yield Violation(field, "holds a character that cannot be printed on one line (newline, tab, control)")


def _mounts(spec: TaskSpec) -> Iterator[Violation]:
    if len(spec.mounts) > MOUNTS_MAX:
        yield Violation("mounts", f"are {len(spec.mounts)}; at most {MOUNTS_MAX} are allowed")
        return
    seen: set[str] = set()
    for number, mount in enumerate(spec.mounts):
        source, target = f"mounts[{number}].source", f"mounts[{number}].target"
        yield from _normal(source, mount.source)
        yield from _normal(target, mount.target)
        if mount.target == "/":
            yield Violation(target, "the root itself cannot be mounted over")
        for tree in _OWN_TREES:
            if _is_at_or_below(mount.target, tree):
                yield Violation(target, f"{_shown(mount.target)} lies in {tree}, which the sandbox makes itself")
        if mount.target in seen:
            yield Violation(target, f"{_shown(mount.target)} is the target of two mounts")
        seen.add(mount.target)


def _normal(field: str, path: str) -> Iterator[Violation]:
    yield from _absolute(field, path)
    parts = path.split("/")[1:]
    if path.startswith("/") and path != "/" and any(part in ("", ".", "..") for part in parts):
        yield Violation(field, f"'{_shown(path)}' is not in its plain form: leave out '..', '.', '//' and a last '/'")
