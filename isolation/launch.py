"""Making one sandbox: take what it needs, clone it; give everything back when it is gone.

Order: user id, scratch, group with its limits, network, mounts, each undone if a later one fails; then the plan and the
clone. Nothing here waits, and nothing is left behind by a launch that fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from isolation import _sandbox, namespaces, plan, privileges, seccomp
from isolation.cgroup import Group, Parent
from isolation.config import SpawnerConfig
from isolation.errors import StepFailed
from isolation.mounts import View
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
        networks: namespaces.NetworkPool,
        view: View,
        *,
        users: Users,
    ) -> None:
        self._allow_host_network = config.allow_host_network
        self._parent = parent
        self._scratch = scratch
        self._networks = networks
        self._view = view
        self._users = users
        self._nofile = privileges.nofile_bounds()
        self._filter = seccomp.program()
        self._next_token = 0

    def launch(self, spec: SandboxSpec, stdio: tuple[int, int, int]) -> Sandbox:
        """Clones the sandbox. Raises StepFailed or OSError and leaves nothing behind."""
        if spec.host_network and not self._allow_host_network:
            raise StepFailed("network", errno.EPERM, "host", "this node does not allow the host's network to tasks")
        with contextlib.ExitStack() as undo:
            uid = self._users.take()
            undo.callback(self._users.give_back, uid)
            self._scratch.make(spec.id, uid, self._users.gid)
            undo.callback(self._scratch.remove, spec.id)
            group = self._parent.acquire(spec.id)
            undo.callback(group.release)
            group.limit(spec.limits)
            network_fd = None if spec.host_network else self._networks.take()
            if network_fd is not None:
                undo.callback(self._networks.give_back, network_fd)
            attachments = self._view.attach(spec.mounts)
            try:
                resources = plan.Resources(
                    task_fds=group.task_fds,
                    network_fd=network_fd,
                    attachments=attachments,
                    uid=uid,
                    gid=self._users.gid,
                    stdio=stdio,
                    nofile=self._nofile,
                    filter=self._filter,
                )
                sandbox = self._clone(spec, resources, group)
            finally:
                for attachment in attachments:
                    os.close(attachment.fd)
            undo.pop_all()
        return sandbox

    def _clone(self, spec: SandboxSpec, resources: plan.Resources, group: Group) -> Sandbox:
        steps = plan.steps(spec, resources)
        paths = plan.candidates(spec)
        argv = [os.fsencode(arg) for arg in spec.argv]
        envp = [os.fsencode(f"{name}={value}") for name, value in spec.env.items()]
        self._next_token = (self._next_token + 1) & 0xFFFFFFFF
        flags, token = namespaces.CLONE_FLAGS, self._next_token
        calls = [step.call for step in steps]
        started_at = time.time()
        try:
            pid = _sandbox.spawn(flags, group.into_fd, calls, paths, argv, envp, plan.REPORT_FD, token)
        except OSError as error:
            raise StepFailed("clone", error.errno or 0) from error
        return Sandbox(spec, token, pid, group, resources.network_fd, resources.uid, steps, paths, started_at)

    def release(self, sandbox: Sandbox) -> None:
        """Takes back what a sandbox had that is gone."""
        self._scratch.remove(sandbox.spec.id)
        sandbox.group.release()
        if sandbox.network_fd is not None:
            self._networks.give_back(sandbox.network_fd)
        self._users.give_back(sandbox.uid)
