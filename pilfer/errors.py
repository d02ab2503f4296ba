"""What can go wrong for a client. Loads neither grpc nor protobuf: the command line maps these to exit codes.

Every error says what happened in words; `code` is the name of the gRPC status behind it, if there was one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PilferError(Exception):
    """Base of everything this client raises on purpose."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        #: Name of the gRPC status code ("NOT_FOUND"), empty where no call was made.
        self.code = code


class Unavailable(PilferError):  # noqa: N818  (named as gRPC and the conventions name it)
    """No node answers, or the one that does cannot do it now. Whether an unanswered submit was stored is not known;
    repeating it with the same ids settles it (the client does so until its patience ends)."""

    def __init__(self, message: str, *, code: str = "", is_from_node: bool = False) -> None:
        super().__init__(message, code=code)
        #: A node said so; otherwise no connection to one could be made or kept.
        self.is_from_node = is_from_node


class NoQuorum(Unavailable):
    """A node answered, and etcd does not answer it: it reaches no majority of etcd's voters."""

    def __init__(self, message: str, *, code: str = "", is_from_node: bool = True) -> None:
        super().__init__(message, code=code, is_from_node=is_from_node)


class TimedOut(PilferError, TimeoutError):  # noqa: N818
    """The caller's time is up."""


class NotFound(PilferError):  # noqa: N818
    """No such task, or no such attempt of it."""


class AlreadyExists(PilferError):  # noqa: N818
    """A task of this id is there already with another spec; nothing was changed."""


class NotAllowed(PilferError):  # noqa: N818
    """The caller may not do this."""


class ResourceExhausted(PilferError):  # noqa: N818
    """Too large, or the cluster takes no more at the moment; nothing was stored by this call."""


class PreconditionFailed(PilferError):  # noqa: N818
    """The cluster is not in a state for it; the message says what has to be done first. Nothing was changed."""


class RevisionGone(PilferError):  # noqa: N818
    """The revision to watch from was compacted away: list, then watch from now."""


class ServerFailure(PilferError):  # noqa: N818
    """The node answered with an error that this client has no name for; see `code`."""


class InvalidAddress(PilferError, ValueError):  # noqa: N818
    """The address, or what is needed to reach it (certificates), cannot be used."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong: its path ("tasks[3].spec.requirements.cpu") and why."""

    field: str
    description: str


class InvalidRequest(PilferError, ValueError):  # noqa: N818
    """The request was refused as it stands; nothing of it was stored. `violations` names every wrong field."""

    def __init__(
        self, message: str, violations: Sequence[FieldViolation] = (), *, code: str = "INVALID_ARGUMENT"
    ) -> None:
        super().__init__(message, code=code)
        self.violations = tuple(violations)
