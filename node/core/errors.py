"""Errors of the core."""

from __future__ import annotations


class IllegalTransition(Exception):  # noqa: N818  (named as the conventions name it)
    """A transition that the table does not have was asked for; nothing was changed.

    A programmer's error: the guards in etcd would refuse it too.
    """

    def __init__(self, task_id: str, cause: str, story: str) -> None:
        super().__init__(f"task {task_id}: illegal {cause}: {story}")
        self.task_id = task_id
        self.cause = cause
        self.story = story
