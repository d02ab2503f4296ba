"""Making one sandbox: take what it needs, clone it; give everything back when it is gone.

Order: user id, scratch, group with its limits, network, mounts, each undone if a later one fails; then the plan and the
clone. Nothing here waits, and nothing is left behind by a launch that fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Sequence

from isolation import _sandbox, namespaces, plan, privileges, rootless, seccomp
from isolation.cgroup import Group, Parent
from isolation.config import SpawnerConfig
from isolation.errors import StepFailed
from isolation.mounts import View
from isolation.notes import FreeNotes
from isolation.rootless import Rootless, UserSteps
from isolation.sandbox import Sandbox
from isolation.scratch import ScratchRoot
from isolation.spec import SandboxSpec
from isolation.users import Users


class Launcher:
    """What all sandboxes are made from. The spawner owns the parts and closes them."""

    def __init__(
        self,
        config: SpawnerConfig,
        parent: Parent,
        scratch: ScratchRoot,
        networks: namespaces.NetworkPool | None,
        view: View,
        *,
        users: Users,
        own: Rootless | None = None,
        limits: Sequence[str] = (),
    ) -> None:
        """networks: None for an ordinary user, who is `own`; None for root. limits: those that groups enforce."""
        self._allow_host_network = config.allow_host_network
        self._has_shares = bool(config.shares)
        self._parent = parent
        self._scratch = scratch
        self._networks = networks
        self._view = view
        self._users = users
        self._own = own
        self._limits = frozenset(limits)
        self._nofile = privileges.nofile_bounds()
        self._filter = seccomp.program()
        self._notes = FreeNotes()

    def launch(self, spec: SandboxSpec, stdio: tuple[int, int, int]) -> Sandbox:
        """Clones the sandbox. Raises StepFailed or OSError and leaves nothing behind."""
        if spec.host_network and not self._allow_host_network:
            raise StepFailed("network", errno.EPERM, "host", "this node does not allow the host's network to tasks")
        with contextlib.ExitStack() as undo:
            uid = self._users.take()
            undo.callback(self._users.give_back, uid)
            scratch = self._scratch.make(spec.id, uid, self._users.gid, spec.limits.scratch_bytes)
            undo.callback(self._scratch.remove, spec.id)
            group = self._parent.acquire(spec.id)
            undo.callback(group.release)
            group.limit(spec.limits)
            # None: the host's, or an ordinary user's, which the clone makes.
            network_fd = None
            if self._networks is not None and not spec.host_network:
                network_fd = self._networks.take()
                undo.callback(self._networks.give_back, network_fd)
            attachments = self._view.attach(spec.mounts)
            try:
                resources = plan.Resources(
                    task_fds=group.task_fds,
                    network_fd=network_fd,
                    attachments=attachments,
                    uid=uid,
                    gid=self._users.gid,
                    scratch=scratch,
                    stdio=stdio,
                    nofile=self._nofile,
                    filter=self._filter,
                    user_steps=self._user_steps(spec),
                    masked_in_proc=self._view.masked_in_proc,
                )
                sandbox = self._clone(spec, resources, group)
            finally:
                for attachment in attachments:
                    os.close(attachment.fd)
            undo.pop_all()
        return sandbox

    def _user_steps(self, spec: SandboxSpec) -> UserSteps | None:
        if self._own is None:
            return None
        return self._own.steps(
            spec.limits, host_network=spec.host_network, first_fd=plan.FREE_FD, in_force=self._limits
        )

    def _clone(self, spec: SandboxSpec, resources: plan.Resources, group: Group) -> Sandbox:
        steps = plan.steps(spec, resources)
        paths = plan.candidates(spec)
        argv = [os.fsencode(arg) for arg in spec.argv]
        envp = [os.fsencode(f"{name}={value}") for name, value in spec.env.items()]
        flags, note = self._clone_flags(spec), self._notes.take()
        calls = [step.call for step in steps]
        started_at = time.time()
        try:
            pid = _sandbox.spawn(flags, group.into_fd, calls, paths, argv, envp, plan.REPORT_FD, note)
        except OSError as error:
            self._notes.give_back(note)
            raise StepFailed("clone", error.errno or 0) from error
        return Sandbox(spec, note, pid, group, resources.network_fd, resources.uid, steps, paths, started_at)

    def _clone_flags(self, spec: SandboxSpec) -> int:
        if self._own is None:
            return namespaces.CLONE_FLAGS
        return namespaces.CLONE_FLAGS | rootless.CLONE_FLAGS | (0 if spec.host_network else _sandbox.CLONE_NEWNET)

    def _can_meet_others(self, spec: SandboxSpec) -> bool:
        """Whether it can have reached a socket of another task (unix(7): in a directory that both see, or abstract),
        and have handed it descriptors of its own."""
        return bool(spec.mounts) or spec.host_network or self._has_shares

    def release(self, sandbox: Sandbox) -> None:
        """Takes back what a sandbox had that is gone."""
        may_keep = not self._can_meet_others(sandbox.spec)
        self._scratch.remove(sandbox.spec.id, may_keep=may_keep)
        sandbox.group.release()
        if self._networks is not None and sandbox.network_fd is not None:
            self._networks.give_back(sandbox.network_fd, may_keep=may_keep)
        self._users.give_back(sandbox.uid)
        self._notes.give_back(sandbox.note)
