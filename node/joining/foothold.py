"""How a start stands towards its cluster: it founds one, joins one, or comes back to the one it belongs to.

Only a start without `--peers` in an empty data directory founds. With `--peers` an empty directory joins, and waits for
a peer for as long as it takes. A directory that belongs to a cluster comes back to it, whatever the flags say.

Interruptions. Founding writes `cluster.json`, with the cluster's id, before anything else, and `etcd/founding` beside
it, which goes when etcd holds the id: a start in between founds the same cluster again. A join that was interrupted is
repeated (`node/joining/join.py`). What is half gone (certificates without `cluster.json`) is an error and never a new
cluster: two clusters that think they are one lose work.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.cluster.lease_keeper import IN_USE_MARGIN_S
from node.config import Settings
from node.core.newcomer import Newcomer
from node.datadir import DataDir, DataDirError
from node.joining.alone import wait_alone
from node.joining.cluster_memory import ClusterMemory
from node.joining.handshake import Papers
from node.joining.join import join
from node.joining.place import Place
from node.listening import try_listen
from node.trust.material import JoinNeeded, Trust, ensure_trust, has_joined, names_of_this_host

log = logging.getLogger(__name__)

#: Stands in every certificate; clusters are told apart by their authority and their id.
CLUSTER_NAME = "pilfer"


@dataclass(frozen=True, slots=True)
class Foothold:
    """What a start knows before it has spoken to etcd."""

    memory: ClusterMemory
    trust: Trust
    #: There while the cluster is being founded by this very directory.
    founding: Path

    @property
    def is_founding(self) -> bool:
        # The mark of a start that was killed before it wrote cluster.json means nothing to one that joined since.
        return self.memory.is_founder and self.founding.exists()

    def founded(self) -> None:
        """etcd holds the cluster's id."""
        self.founding.unlink(missing_ok=True)


async def stand(settings: Settings, place: Place, data: DataDir, join_token: str | None) -> Foothold:
    """Finds out which, and does what it needs; waits for peers. Raises JoinRefused, TrustError, DataDirError, and
    AddressInUse before anything is founded or joined where this host cannot listen."""
    names = names_of_this_host(*place.names)
    memory = ClusterMemory.load(data.path)
    if memory is None or not (has_joined(data.pki) or _founding_mark(data).exists()):
        # Whoever mistyped --listen starts again with other flags, and must find the directory as it was. A host that
        # comes back has nothing to lose, and what its last run left behind may hold the port until the spawner starts.
        if place.listen is not None:
            try_listen(place.listen)
        if settings.peers:
            memory = await _join(settings, place, data, join_token, names)
        else:
            memory = _found(settings, data, memory)
    elif join_token is not None:
        log.info("this host belongs to its cluster already: the join token is not needed")
    try:
        trust = _ensure_trust(data, names, memory)
    except JoinNeeded as error:
        # The certificate ended while the node was away, or is another host's: nothing but a join mends that.
        if not settings.peers or join_token is None:
            raise
        log.warning("joining again: %s", error)
        memory = await _join(settings, place, data, join_token, names)
        trust = _ensure_trust(data, names, memory)
    if _may_be_copy_of_member(data):
        await wait_alone(
            memory,
            [str(peer) for peer in settings.peers],
            lambda: papers_of(trust),
            host_id=data.host_id,
            own_address=place.address,
            # As long as a session waits for the same (`LeaseKeeper.in_use_patience_s`).
            patience_s=2 * settings.lease_ttl_s + IN_USE_MARGIN_S,
        )
    return Foothold(memory, trust, _founding_mark(data))


def papers_of(trust: Trust) -> Papers:
    """What this node shows to others, as it is on the disk now. Raises OSError."""
    return Papers(trust.ca_cert.read_bytes(), trust.node_cert.read_bytes(), trust.node_key.read_bytes())


def _may_be_copy_of_member(data: DataDir) -> bool:
    last = data.find_incarnation()
    return (data.etcd / "data").exists() and not (last is not None and data.wrote(last))


def _ensure_trust(data: DataDir, names: Sequence[str], memory: ClusterMemory) -> Trust:
    return ensure_trust(
        data.pki,
        cluster_name=CLUSTER_NAME,
        host_id=data.host_id,
        host_names=names,
        now=time.time(),
        may_found=memory.is_founder,
    )


def _founding_mark(data: DataDir) -> Path:
    return data.etcd / "founding"


def _found(settings: Settings, data: DataDir, memory: ClusterMemory | None) -> ClusterMemory:
    if memory is not None:
        raise DataDirError(
            f"{data.pki} lacks the certificates of the cluster that {data.path} belongs to: restore them, or start "
            "with --peers and a new join token"
        )
    if has_joined(data.pki) or any(data.etcd.glob("data")):
        raise DataDirError(
            f"{data.path} belonged to a cluster, and its cluster.json is missing: restore it; or start with --peers "
            "and a join token to come back to that cluster; or give an empty --data-dir to found another one"
        )
    memory = ClusterMemory(data.path, cluster_id=str(uuid.uuid4()), name=settings.name, is_founder=True)
    data.etcd.mkdir(mode=0o700, exist_ok=True)
    # The mark first: without cluster.json it means nothing, and the other way round an empty etcd would be taken for
    # a lost one.
    _founding_mark(data).touch()
    memory.save()
    return memory


async def _join(
    settings: Settings, place: Place, data: DataDir, join_token: str | None, names: Sequence[str]
) -> ClusterMemory:
    if join_token is None:
        raise DataDirError(
            f"to join the cluster of {', '.join(map(str, settings.peers))} this host needs a join token: make one "
            "there with node token create, and give it by --token-file or PILFER_JOIN_TOKEN"
        )
    newcomer = Newcomer(
        host_id=data.host_id,
        name=settings.name,
        is_name_given=settings.origins.get("name", "default") != "default",
        address=place.address,
        host_names=tuple(names),
    )
    # What was begun here alone is over: a host that joins never founds.
    _founding_mark(data).unlink(missing_ok=True)
    peers = [str(peer) for peer in settings.peers]
    return await join(peers, join_token, newcomer, data_dir=data.path, pki_dir=data.pki)
