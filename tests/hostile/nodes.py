"""A whole node whose tasks are attacks.

Its data directory lies where every task could see it (/opt, of which the view shows all), so that what hides it is
tried too; temporary directories are hidden anyway.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilfer import Client, TaskSpec
from tests.hostile.harness import ATTACKS, MARKER, PYTHON, Report, marker
from tests.support.node_process import LiveNode, processes_in, require_node
from tests.support.wait import wait_until_sync

_VISIBLE = Path("/opt")
PATIENCE_S = 60.0


class HostileNode:
    """Runs attacks as tasks of a node."""

    def __init__(self, node: LiveNode) -> None:
        self.node = node
        self.client: Client = node.client()
        self.environment = {MARKER: marker()}

    def spec(self, attack: str, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> TaskSpec:
        """The attack's name is that of its script, without `.py`."""
        options.setdefault("timeout_s", PATIENCE_S)
        command, *rest = PYTHON
        return TaskSpec.of(
            command, *rest, str(ATTACKS / f"{attack}.py"), *args, env={**self.environment, **(env or {})}, **options
        )

    def run(self, attack: str, *args: str, **options: Any) -> Report:
        """To its end."""
        return self.report(self.client.submit(self.spec(attack, *args, **options)))

    def report(self, task_id: str) -> Report:
        """Waits for a task and reads what it said."""
        task = self.client.wait(task_id, timeout_s=PATIENCE_S)
        stdout, stderr = (self.output(task_id, stream).decode(errors="replace") for stream in ("stdout", "stderr"))
        assert task.outcome is not None
        assert task.exit_code is not None, (task.outcome, stderr)
        said = dict(line.split(": ", 1) for line in stdout.splitlines() if ": " in line)
        return Report(said, stdout, stderr, None, task.exit_code)

    def output(self, task_id: str, stream: str) -> bytes:
        return b"".join(chunk.data for chunk in self.client.log(task_id, stream=stream))


@contextmanager
def hostile_node(*flags: str) -> Iterator[HostileNode]:
    """Started, and gone afterwards with all that it had."""
    require_node()
    directory = Path(tempfile.mkdtemp(prefix="pilfer-test-", dir=_VISIBLE))
    directory.chmod(0o755)
    node = LiveNode(directory / "node", "--share", f"{ATTACKS.resolve()}:ro", *flags)
    try:
        node.start()
        hostile = HostileNode(node)
        try:
            hostile.client.nodes()  # its connection is made now, and no test's leak
            yield hostile
        finally:
            hostile.client.close()
    except BaseException:
        print(node.tail())
        raise
    finally:
        node.end()
        wait_until_sync(lambda: not processes_in(node.cgroups()), what="every task process is gone")
        shutil.rmtree(directory)
    assert not os.path.lexists(directory)
