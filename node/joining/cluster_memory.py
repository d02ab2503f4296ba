"""What a data directory remembers of its cluster: `cluster.json`.

With it a node comes back as what it was without asking anybody which cluster that is, and finds the others when it was
away while they moved. Addresses in it are hints, kept fresh while the node runs; the cluster's id and the name are
facts, written once.

    cluster_id       which cluster this host belongs to
    name             of this node, as the cluster gave it (a name that was made up may have got a number)
    is_founder       this host founded the cluster; only such a directory may start without anybody else
    etcd_endpoints   HOST:PORT of the client ports of etcd's voters
    node_addresses   HOST:PORT of the nodes

Must not do: judge whether an address still holds, or talk to anybody.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from node.datadir import DataDirError
from node.files import write_atomic

FILE_NAME: Final = "cluster.json"

#: A voter's address is some 20 bytes, and a cluster has at most some thousand nodes: far more is no file of ours.
_MAX_BYTES: Final = 1 << 20


class ClusterMemoryError(DataDirError):
    """cluster.json cannot be read or written; the text names it and says what to do."""


@dataclass(frozen=True, slots=True)
class Contacts:
    """Where a cluster is, as far as somebody knows. HOST:PORT each."""

    #: Client ports of etcd's voters.
    etcd_endpoints: tuple[str, ...] = ()
    node_addresses: tuple[str, ...] = ()


class ClusterMemory:
    """The remembered cluster. In memory it is always the newest; on disk as of the last write that succeeded.

    Attributes are replaced, never changed in place, so that another thread may read them.
    """

    def __init__(
        self, directory: Path, *, cluster_id: str, name: str, is_founder: bool, contacts: Contacts = Contacts()
    ) -> None:
        """`directory`: the data directory. Nothing is written before `save`."""
        self.path = directory / FILE_NAME
        self.cluster_id = cluster_id
        self.name = name
        self.is_founder = is_founder
        self.contacts = contacts
        #: What the file holds, as far as this object knows.
        self._written: Contacts | None = None

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        return self.contacts.etcd_endpoints

    @property
    def node_addresses(self) -> tuple[str, ...]:
        return self.contacts.node_addresses

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """None where this directory never belonged to a cluster. Raises ClusterMemoryError: a node that forgot its
        cluster in silence would found another one, or ask for a token again."""
        path = directory / FILE_NAME
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClusterMemoryError(f"cannot read {path}: {error.strerror}") from error
        try:
            return cls._parse(directory, content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ClusterMemoryError(
                f"{path} cannot be read ({error!r}): restore it from a copy; or move it away and start with --peers"
                " naming a living node and with a join token (node token create): this host then joins again as itself"
            ) from None

    @classmethod
    def _parse(cls, directory: Path, content: bytes) -> Self:
        if len(content) > _MAX_BYTES:
            raise ValueError("too large")
        fields = json.loads(content)
        if not isinstance(fields, dict) or not isinstance(fields["is_founder"], bool):
            raise TypeError("not what Pilfer writes")
        memory = cls(
            directory,
            cluster_id=str(uuid.UUID(_text(fields["cluster_id"]))),
            name=_text(fields["name"]),
            is_founder=fields["is_founder"],
            contacts=Contacts(_texts(fields, "etcd_endpoints"), _texts(fields, "node_addresses")),
        )
        memory._written = memory.contacts
        return memory

    def save(self) -> None:
        """Durable when it returns. Raises ClusterMemoryError; the old file is still there then."""
        fields = {
            "cluster_id": self.cluster_id,
            "name": self.name,
            "is_founder": self.is_founder,
            "etcd_endpoints": self.etcd_endpoints,
            "node_addresses": self.node_addresses,
        }
        try:
            write_atomic(self.path, json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise ClusterMemoryError(f"cannot write {self.path}: {error.strerror}") from error
        self._written = self.contacts

    def update(
        self, *, etcd_endpoints: Sequence[str] | None = None, node_addresses: Sequence[str] | None = None
    ) -> bool:
        """Remembers where the cluster is now; True: that is news, and was written.

        Nothing (None or an empty list) means "not known" and is not remembered: a node without any address would find
        nobody again. Order counts for etcd's endpoints only (the first is preferred). Raises ClusterMemoryError when
        it cannot be written; it holds in memory nevertheless, and the next call tries to write it again.
        """
        contacts = Contacts(
            tuple(dict.fromkeys(etcd_endpoints or self.etcd_endpoints)),
            tuple(sorted(set(node_addresses or self.node_addresses))),
        )
        self.contacts = contacts
        if contacts == self._written:
            return False
        self.save()
        return True


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"no text: {value!r}")
    return value


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    values = fields[name]
    if not isinstance(values, list):
        raise TypeError(f"{name} is no list")
    return tuple(map(_text, values))
