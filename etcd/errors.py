"""What can go wrong with etcd. Nothing of grpc leaks past the client."""

from __future__ import annotations


class StoreError(Exception):
    """Base of all errors of this package."""


class StoreUnavailable(StoreError):  # noqa: N818  (named as the conventions name it)
    """etcd does not answer; nothing was written by this call (a read, a watch, a lease stream)."""


class OutcomeUnknown(StoreError):  # noqa: N818
    """The call may have been applied, may be applied later, or never: only sending the same guarded transaction
    again, until it is answered, settles it."""


class InvalidRequest(StoreError):  # noqa: N818
    """etcd refused the request itself (duplicate key, too many operations); nothing was written."""


class RequestTooLarge(InvalidRequest):
    """The request is over etcd's size limit; nothing was written."""


class NoSpace(StoreError):  # noqa: N818
    """The database quota is used up; nothing was written. Reads, deletes and keepalives still work."""


class Compacted(StoreError):  # noqa: N818
    """The revision asked for is gone: list again."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"revision is compacted; the oldest kept is {compact_revision}")
        self.compact_revision = compact_revision


class LeaseNotFound(StoreError):  # noqa: N818
    """The lease has expired or was revoked."""


class RecordCorrupt(StoreError):  # noqa: N818
    """A key or a record cannot be read, or they disagree."""
