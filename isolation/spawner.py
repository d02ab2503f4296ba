"""The spawner: the small process that makes every sandbox of a node.

One thread, one loop over epoll: requests and control from the node (`protocol.py`), rings from the sandboxes' PID 1
(`notes.py`), ends of children, timers. It never waits for anything else. It holds no policy: limits, timeouts and the
deadline come from the node; what it does by itself is to freeze at the deadline, and to kill everything when the node
is gone.

It loads nothing but the standard library, python-prctl and the C extension. Before it reports ready it has killed what
an earlier run left, built the view and pivoted into it; after that no module can be imported (the interpreter's
files may be out of sight), so everything is imported above.

Order of an end: reap, read the group, report; then scratch, group and network go back, off the reply path.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import linecache  # noqa: F401  (a traceback needs it, and after the pivot it cannot be loaded)
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import prctl  # type: ignore[import-untyped]  # the library has no stubs

from isolation import kernel, leftovers, memory, namespaces, privileges, protocol, rings, rootless, succession, trial
from isolation.cgroup import files, none
from isolation.config import SpawnerConfig
from isolation.errors import HostLacks, ProtocolError, StepFailed, explain
from isolation.fence import Fence
from isolation.launch import Launcher
from isolation.living import Living
from isolation.mounts import View
from isolation.probe import Host, probe, said
from isolation.sandbox import STOP, TIMEOUT, Sandbox
from isolation.scratch import ScratchRoot
from isolation.scratch_policy import LOOK_EVERY_S
from isolation.scratch_watch import ScratchWatch
from isolation.spec import HostReport, SandboxSpec, SetupFailed
from isolation.timers import Timers
from isolation.users import Users, find_users

#: From clone to exec; longer means that a step hangs in the kernel (a dead file server).
START_LIMIT_S = 30.0
#: Launches between two looks at everything else: a launch takes about a millisecond.
LAUNCHES_PER_TURN = 4
#: Groups that the kernel is not done with are tried again so often.
TIDY_RETRY_S = 0.01
#: Tidying is for idle moments, but a busy spawner must not fill the disk.
TIDY_EVERY_TURNS = 8
#: For everything to die when the spawner closes.
CLOSE_PATIENCE_S = 3.0
NETWORKS_AHEAD = 4

#: Of one text in a report; JSON may take six bytes for a character.
_WORDS_MAX = 3000
#: errnos of a send that do not mean that the other end is gone (unix(7)).
_SHORTAGES = (errno.ENOBUFS, errno.ENOMEM)
#: errnos that whoever has the directory can do something about.
_OF_A_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
#: struct signalfd_siginfo (signalfd(2))
_SIGNAL_BYTES = 128


def log(event: str, **fields: object) -> None:
    """One structured line on stderr, which is the node's."""
    line = json.dumps({"from": "spawner", "event": event, **fields})
    with contextlib.suppress(OSError):
        os.write(2, line.encode() + b"\n")


class Spawner:
    def __init__(self, requests: socket.socket, control: socket.socket, config: SpawnerConfig) -> None:
        self._requests = requests
        self._control = control
        self._config = config
        self._outbox: deque[bytes] = deque()
        self._is_closing = False
        self._close_by_s = 0.0
        self._set_up()

    # ---- start ---------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        """In this order: leftovers first, the pivot late, privileges last. Raises HostLacks, StepFailed, OSError."""
        # Before any other file is opened, which might get the number that is theirs.
        self._rings = rings.make()
        privileges.raise_own_nofile()
        # Never closed: it is given back when this process is gone.
        self._lock: int | None = None
        if self._config.lock is not None:
            with _told_by_path(self._config.lock):
                self._lock = succession.succeed(self._config.lock, log)
        killed, stuck = leftovers.clean(self._config.host_id)
        if killed or stuck:
            log("leftovers", killed=killed, stuck=[str(path) for path in stuck])
        host = probe(self._config)
        self._parent = host.parent
        try:
            self._set_up_rest(host)
        except BaseException:
            self._parent.close()
            raise

    def _set_up_rest(self, host: Host) -> None:
        self._children_fd = kernel.signal_fd(signal.SIGCHLD)
        self._timers = Timers()
        self._living = Living(self._parent, self._timers)
        with _told_by_path(self._config.scratch_root):
            self._scratch = ScratchRoot(self._config.scratch_root, self._config.scratch_limit_bytes)
        proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._scratch_watch = ScratchWatch(
            self._scratch.fd,
            proc_fd,
            pids_of=lambda name: self._pids_of(name, proc_fd),
            on_over=self._living.kill_for_scratch,
            clock=time.monotonic,
            limit_bytes=self._scratch.limit_bytes,
        )
        own = rootless.enter(proc_fd) if host.is_ordinary else None
        self._networks = namespaces.NetworkPool(proc_fd) if own is None else None
        if self._networks is not None:
            self._networks.fill(NETWORKS_AHEAD)
        users, missing = find_users(self._config, proc_fd) if own is None else (Users(own.uid, 1, own.gid), ())
        view = View(self._config, proc_fd, is_ordinary=host.is_ordinary, is_confined=host.is_confined)
        self._launcher = Launcher(
            self._config, self._parent, self._scratch, self._networks, view, users=users, own=own, limits=host.limits
        )
        privileges.drop_for_good()
        self._fence = Fence(
            *(self._parent, self._timers),
            kill_all=self._living.kill_all,
            kill_unfrozen=self._living.kill_unfrozen,
            log=log,
        )
        gc.collect()
        gc.freeze()
        memory.keep_out_of_forks(proc_fd)
        if host.is_ordinary or host.is_confined:
            trial.run(self._launcher)
        not_enforced, limits = said(host, own)
        self._send(HostReport(self._parent.version, (*not_enforced, *missing), os.getpid(), limits))

    def _pids_of(self, name: str, proc_fd: int) -> list[int]:
        sandbox = self._living.find(name)
        if sandbox is None:
            return []
        return sandbox.group.pids() if self._parent.version else none.processes_below(proc_fd, sandbox.pid)

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the node closes its end, or says Close."""
        poll = select.epoll()
        handlers = {
            self._control.fileno(): self._on_control,
            self._children_fd: self._on_children,
            self._rings.fileno(): self._on_rings,
            self._timers.fd: self._timers.run_due,
            self._requests.fileno(): self._on_requests,
        }
        for fd in handlers:
            poll.register(fd, select.EPOLLIN)
        wants_write = False
        turn = 0
        self._flush()
        while not self._is_done():
            ready = {fd for fd, _ in poll.poll(self._patience_s())}
            # In the order of the table: what ends or fences goes before what starts.
            for fd, handle in handlers.items():
                if fd in ready:
                    handle()
            self._flush()
            if bool(self._outbox) != wants_write:
                wants_write = bool(self._outbox)
                poll.modify(self._requests.fileno(), select.EPOLLIN | (select.EPOLLOUT if wants_write else 0))
            turn += 1
            if not ready or self._is_closing or turn % TIDY_EVERY_TURNS == 0:
                self._tidy()
        self._end()

    def _patience_s(self) -> float:
        """How long to wait for events: not at all while there is something to tidy up."""
        if self._is_closing:
            return TIDY_RETRY_S
        if self._has_trash or self._is_measuring:
            return 0
        return TIDY_RETRY_S if self._has_doomed else -1

    _has_trash = False
    _has_doomed = False
    _is_measuring = False
    _is_looking = False

    def _look_at_scratch(self) -> None:
        """Again and again while anything runs."""
        self._is_looking = not self._scratch_watch.is_idle
        if self._is_looking:
            self._is_measuring = self._scratch_watch.look()
            self._timers.after(LOOK_EVERY_S, self._look_at_scratch)

    def _tidy(self) -> None:
        if self._is_measuring:
            self._is_measuring = not self._scratch_watch.step()
        self._has_trash = not self._scratch.tidy()
        self._has_doomed = not self._parent.tidy()

    def _is_done(self) -> bool:
        return self._is_closing and (self._living.is_empty or time.monotonic() > self._close_by_s)

    def _close(self, why: str) -> None:
        if not self._is_closing:
            log("closing", why=why, sandboxes=len(self._living.pids))
            self._is_closing = True
            self._close_by_s = time.monotonic() + CLOSE_PATIENCE_S
            self._fence.kill_frozen(STOP)

    def _end(self) -> None:
        if not self._living.is_empty:
            log("left alive", pids=self._living.pids)
        if self._networks is not None:
            self._networks.close()
        self._scratch_watch.close()
        self._scratch.close()
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        while not self._parent.tidy() and time.monotonic() < deadline:
            time.sleep(TIDY_RETRY_S)  # nothing else is left to do
        self._parent.close()

    # ---- from the node -------------------------------------------------------------------------------------------

    def _on_control(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while not self._is_closing:
                received = protocol.receive(self._control)
                protocol.close_all(received.fds)
                if not received.data:
                    self._close("the node is gone")
                    return
                try:
                    self._do_control(protocol.decode(received.data))
                except ProtocolError as error:
                    self._send(protocol.Refused(str(error)[:_WORDS_MAX]))

    def _do_control(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.SetDeadline):
            self._fence.set_deadline(message.boottime_s)
        elif isinstance(message, protocol.Fence):
            self._fence.lose()
        elif isinstance(message, protocol.Stop):
            sandbox = self._living.find(message.id)
            if sandbox is not None:  # else it has ended, and its report is on its way
                self._living.terminate(sandbox, STOP, message.grace_s)
        elif isinstance(message, protocol.Ping):
            self._send(protocol.Pong(message.number))
        elif isinstance(message, protocol.Close):
            self._close("asked to")
        else:
            raise ProtocolError(f"{type(message).__name__} is not for the control socket")

    def _on_requests(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(LAUNCHES_PER_TURN):
                received = protocol.receive(self._requests)
                if not received.data:
                    self._close("the node is gone")
                    return
                try:
                    self._on_request(received)
                finally:
                    protocol.close_all(received.fds)

    def _on_request(self, received: protocol.Received) -> None:
        """Launches, or reports why not; the descriptors stay the caller's."""
        sandbox_id = ""
        try:
            sandbox_id = (protocol.find_id(received.data) or "") if received.cut_by else ""
            spec, stdio = _read_launch(received)
            sandbox_id = spec.id
            self._launch(spec, stdio)
        except (
            ProtocolError,
            UnicodeEncodeError,
        ) as error:  # the latter: half of a surrogate pair, which JSON can carry
            self._refuse(sandbox_id or protocol.find_id(received.data), str(error))
        except StepFailed as failure:
            self._fail(sandbox_id, failure)
        except OSError as error:  # ENOMEM, EMFILE, EAGAIN: the host is short of something, the spawner goes on
            number = error.errno or 0
            self._fail(sandbox_id, StepFailed("prepare", number, "", explain(number, str(error.filename or ""))))
        except MemoryError:  # the interpreter's own
            self._fail(sandbox_id or protocol.find_id(received.data) or "", StepFailed("prepare", errno.ENOMEM))

    def _fail(self, sandbox_id: str, failure: StepFailed) -> None:
        if sandbox_id:
            self._send_failed(SetupFailed(sandbox_id, failure.step, failure.errno, failure.subject, failure.detail))
        else:
            self._send(protocol.Refused(f"{failure.step}: {failure.detail}"))

    def _send_failed(self, failed: SetupFailed) -> None:
        if failed.step == "cgroup" and failed.errno in files.GONE:
            # Removed by somebody else, so nothing runs in it; only the next start makes it again.
            self._close("a control group of this node was removed")
            failed = SetupFailed(failed.id, "closing", errno.ECANCELED, "", "the node's control group was removed")
        # A path may be as long as an argument. A report that fits in a datagram needs no descriptor, which may be
        # what there are no more of.
        self._send(replace(failed, subject=failed.subject[:_WORDS_MAX], detail=failed.detail[:_WORDS_MAX]))

    def _refuse(self, sandbox_id: str | None, detail: str) -> None:
        log("refused", sandbox=sandbox_id, detail=detail)
        if sandbox_id:
            self._send_failed(SetupFailed(sandbox_id, "request", errno.EINVAL, "", detail))
        else:
            self._send(protocol.Refused(detail[:_WORDS_MAX]))

    def _launch(self, spec: SandboxSpec, stdio: tuple[int, int, int]) -> None:
        """Raises StepFailed or OSError and leaves nothing behind."""
        if self._is_closing:
            raise StepFailed("closing", errno.ECANCELED, "", "the spawner is closing")
        if not self._fence.may_start():
            raise StepFailed("fence", errno.ECANCELED, "", "the node's deadline has passed: nothing may start")
        if self._living.find(spec.id) is not None:
            raise StepFailed("request", errno.EEXIST, spec.id, "a sandbox of this id is running")
        sandbox = self._launcher.launch(spec, stdio)
        self._living.add(sandbox)
        sandbox.timers.append(self._timers.after(START_LIMIT_S, lambda: self._give_up(sandbox)))
        self._scratch_watch.add(spec.id, spec.limits.scratch_bytes, self._scratch.path_of(spec.id))
        if not self._is_looking:
            self._is_looking = True
            self._timers.after(LOOK_EVERY_S, self._look_at_scratch)

    def _give_up(self, sandbox: Sandbox) -> None:
        if not sandbox.is_started:
            sandbox.given_up = ("start", errno.ETIMEDOUT, f"the set-up took longer than {START_LIMIT_S:.0f} s")
            self._living.kill(sandbox)

    # ---- from the sandboxes --------------------------------------------------------------------------------------

    def _on_rings(self) -> None:
        """Commands were executed: the numbers of their notes."""
        with contextlib.suppress(BlockingIOError):
            for number in rings.numbers(self._rings):
                sandbox = self._living.find_by_note(number)
                if sandbox is not None and not sandbox.is_started and (at_s := sandbox.read_note()) is not None:
                    self._on_started(sandbox, at_s)

    def _on_started(self, sandbox: Sandbox, at_s: float) -> None:
        sandbox.is_started = True
        sandbox.started_at = at_s
        spec = sandbox.spec
        if not sandbox.asked_by:  # else the end of its grace period is among them
            self._living.cancel_timers(sandbox)
        if spec.timeout_s is not None and not sandbox.asked_by:
            sandbox.timers.append(
                self._timers.after(spec.timeout_s, lambda: self._living.terminate(sandbox, TIMEOUT, spec.grace_s))
            )
        self._send(sandbox.started())

    def _on_children(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._children_fd, _SIGNAL_BYTES)  # one stands for all that are pending
        gone: list[tuple[Sandbox, int, resource.struct_rusage]] = []
        while not self._living.is_empty:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            sandbox = self._living.take_reaped(pid)
            if sandbox is not None:
                gone.append((sandbox, status, used))
        for sandbox, status, used in gone:
            self._report_end(sandbox, status, used)
        self._flush()
        for sandbox, _, _ in gone:
            self._launcher.release(sandbox)
        self._has_trash = self._scratch.has_trash
        self._has_doomed = not self._parent.tidy()

    def _report_end(self, sandbox: Sandbox, status: int, used: resource.struct_rusage) -> None:
        at_s = sandbox.read_note()
        if at_s is not None and not sandbox.is_started:
            self._on_started(sandbox, at_s)
        self._living.remove(sandbox)
        self._scratch_watch.remove(sandbox.spec.id)
        stats = none.at_least(sandbox.group.stats(), used)
        if not sandbox.is_started and sandbox.failure is None and stats.oom_kills:
            # Its memory limit is too small even for the start: that is an outcome of the command, not a failed step.
            self._on_started(sandbox, sandbox.started_at)
        failed = sandbox.setup_failed()
        if failed is not None:
            self._send_failed(failed)
        else:
            self._send(sandbox.ended(status, stats, time.time()))

    # ---- to the node ---------------------------------------------------------------------------------------------

    def _send(self, message: protocol.Report) -> None:
        self._outbox.append(protocol.encode(message))

    def _flush(self) -> None:
        try:
            while self._outbox:
                protocol.send_encoded(self._requests, self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            return  # the node is behind; the loop waits until there is room
        except OSError as error:
            if error.errno in _SHORTAGES:
                return  # of the kernel's: tried again at the next turn
            self._outbox.clear()
            self._close("the node is gone")


def _read_launch(received: protocol.Received) -> tuple[SandboxSpec, tuple[int, int, int]]:
    """Raises ProtocolError, StepFailed."""
    if received.cut_by:
        what = "descriptors" if received.cut_by == errno.EMFILE else "memory"
        raise StepFailed("receive", received.cut_by, "", f"the spawner has no {what} left for this request")
    message = protocol.decode(received.data)
    if not isinstance(message, protocol.Launch):
        raise ProtocolError(f"{type(message).__name__} is not for the request socket")
    if len(received.fds) != protocol.STDIO_COUNT:
        raise ProtocolError(f"a launch comes with {protocol.STDIO_COUNT} descriptors, not {len(received.fds)}")
    return message.spec, (received.fds[0], received.fds[1], received.fds[2])


@contextlib.contextmanager
def _told_by_path(path: Path) -> Iterator[None]:
    """Raises HostLacks for an OSError, which names no file, or one relative to an open directory: that says nothing to
    whoever starts a node."""
    try:
        yield
    except OSError as error:
        advice = "; make it writable, with room" if error.errno in _OF_A_DISK else ""
        raise HostLacks(f"{path} cannot be made ready: {error.strerror or error}{advice}") from error


def _read_config(control: socket.socket) -> SpawnerConfig:
    select.select([control], [], [])
    message = protocol.decode(protocol.receive(control).data)
    if not isinstance(message, protocol.Configure):
        raise ProtocolError(f"the first message must be Configure, not {type(message).__name__}")
    return message.config


def main(requests_fd: int, control_fd: int) -> None:
    """The whole life of the process. Exits 0 when closed in order, 3 when this host cannot run sandboxes."""
    # Its life hangs on the node's socket, not on a terminal or on who signals a whole process group.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    os.umask(0o022)
    prctl.set_name("pilfer-spawner")
    requests, control = rings.move_up(requests_fd), rings.move_up(control_fd)
    try:
        spawner = Spawner(requests, control, _read_config(control))
    except (HostLacks, StepFailed, OSError, ProtocolError) as error:
        detail = f"{error.step}: {error.detail}" if isinstance(error, StepFailed) else str(error)
        with contextlib.suppress(OSError):
            protocol.send(requests, protocol.Refused(detail))
        sys.exit(3)
    try:
        spawner.run()
    except BaseException:
        # PDEATHSIG and the report socket end every sandbox when this process goes.
        log("crashed", traceback=traceback.format_exc())
        raise
