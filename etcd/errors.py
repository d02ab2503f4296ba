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
    """The database quota is used up. Reads, deletes and keepalives still work.

    Nothing was written, but for one case: of requests that were under way when the quota ran out, etcd applies those
    that were agreed on already and answers them with this error too. A guarded transaction may be sent again.
    """


class Compacted(StoreError):  # noqa: N818
    """The revision asked for is gone: list again."""

    def __init__(self, compact_revision: int) -> None:
        """compact_revision: the newest revision compacted away; 0 where etcd does not tell (a read)."""
        super().__init__(f"the revision is compacted (up to {compact_revision or 'a later one'})")
        self.compact_revision = compact_revision


class LeaseNotFound(StoreError):  # noqa: N818
    """The lease has expired or was revoked."""


class RecordCorrupt(StoreError):  # noqa: N818
    """A key or a record cannot be read, or they disagree."""


class MembershipRefused(StoreError):  # noqa: N818  (as above: named after what is so)
    """etcd does not change its members now (unhealthy, too many learners, not in sync); nothing was changed."""


class MemberNotFound(MembershipRefused):
    """The cluster has no such member (any more)."""


class MemberNotLearner(MembershipRefused):
    """The member to be promoted has its vote already."""
