"""Which hosts were removed from the cluster: follows `/cluster/removed/`.

Their certificates are still signed by the cluster's authority; every node refuses them by this list, from memory.
"""

from __future__ import annotations

import contextlib

from etcd import keys
from etcd.errors import RecordCorrupt
from etcd.port import Etcd
from etcd.watch import Listing, list_and_watch


class Removals:
    """The removed hosts, as the watch last told."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._removed: set[str] = set()

    def __contains__(self, host_id: object) -> bool:
        return host_id in self._removed

    async def run(self) -> None:
        """Ends when cancelled; outages are waited through, and what is known stays."""
        async with contextlib.aclosing(list_and_watch(self._etcd, keys.all_removed(), keys_only=True)) as all_news:
            async for news in all_news:
                if isinstance(news, Listing):
                    self._removed = {host_id for kv in news.kvs if (host_id := _host_id(kv.key))}
                    continue
                for event in news.events:
                    if event.is_delete:
                        self._removed.discard(_host_id(event.kv.key))
                    else:
                        self._removed.add(_host_id(event.kv.key))


def _host_id(key: bytes) -> str:
    """Empty for a stranger's key."""
    try:
        return keys.parse_cluster_id(key)
    except RecordCorrupt:
        return ""
