"""Errors of this package."""

from __future__ import annotations

import os

from isolation.spec import SetupFailed


class HostLacks(Exception):  # noqa: N818  (named as the conventions name it)
    """This host cannot run sandboxes at all; the message says what is missing and what to do."""


class SpawnerDied(Exception):  # noqa: N818  (as above)
    """The spawner process is gone, and every sandbox with it."""


class NotLaunched(SpawnerDied):
    """It was gone before it was asked for this sandbox, or before it was told so, and the sandbox has never been."""


class ProtocolError(Exception):
    """A message between node and spawner that cannot be read, or whose values are out of range."""


class StepFailed(Exception):  # noqa: N818  (as above)
    """Inside the spawner: one step before the command failed. Becomes a `SetupFailed` report."""

    def __init__(self, step: str, errno: int, subject: str = "", detail: str = "") -> None:
        super().__init__(step, errno, subject, detail)
        self.step = step
        self.errno = errno
        self.subject = subject
        self.detail = detail or explain(errno, subject)


class SpawnerLost(Exception):  # noqa: N818  (as above)
    """Inside the spawner: it is in a namespace where it must not be, and cannot leave it. It must end at once, which
    nobody may catch: what it made from there would see what nobody may see."""


class SandboxFailed(Exception):  # noqa: N818  (as above)
    """A sandbox could not be set up; the command never ran."""

    def __init__(self, report: SetupFailed) -> None:
        super().__init__(f"{report.id}: {report.step}: {report.detail}")
        self.report = report


#: A path may have 4,096 characters; reports are cut at their end, where the reason is.
_SUBJECT_CHARS_MAX = 1000


def explain(errno: int, subject: str, words: str = "") -> str:
    """What the kernel said (or other words for it), about what; of a subject without end, its beginning."""
    words = words or (os.strerror(errno) if errno else "failed")
    if len(subject) > _SUBJECT_CHARS_MAX:
        subject = f"{subject[:_SUBJECT_CHARS_MAX]}..."
    return f"{subject}: {words}" if subject else words
