"""Who writes: one incarnation of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """One run of a node process and its leased key."""

    node_id: str
    host_id: str
    #: create_revision of /node/NODE_ID: guard of everything this incarnation writes as an owner.
    node_key_revision: int
