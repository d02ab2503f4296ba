"""Which hosts are drained: follows `/cluster/drained/`.

A drain belongs to a host and not to one run of its node, so it holds over restarts. Whoever claims waits until the
drains are known (`wait_known`); otherwise a drained node that starts would claim before it hears of its drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from etcd import cluster_codec, keys
from etcd.errors import RecordCorrupt
from etcd.port import Etcd, KeyValue
from etcd.watch import Listing, list_and_watch
from node.core.model import Drain

log = logging.getLogger(__name__)


class Drains:
    """The drained hosts, as the watch last told."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._drained: dict[str, Drain] = {}
        self._known = asyncio.Event()
        #: Called after every change, and once when the drains are first known. Must not raise or block.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def drained(self) -> Mapping[str, Drain]:
        """Host id -> its drain."""
        return self._drained

    def find(self, host_id: str) -> Drain | None:
        return self._drained.get(host_id)

    async def wait_known(self) -> None:
        """Returns when the drains have been read once."""
        await self._known.wait()

    async def run(self) -> None:
        """Ends when cancelled; outages are waited through, and what is known stays."""
        async with contextlib.aclosing(list_and_watch(self._etcd, keys.all_drained())) as all_news:
            async for news in all_news:
                before = dict(self._drained)
                if isinstance(news, Listing):
                    self._drained.clear()
                    for kv in news.kvs:
                        self._take_in(kv)
                else:
                    for event in news.events:
                        if event.is_delete:
                            self._take_out(event.kv.key)
                        else:
                            self._take_in(event.kv)
                self._tell(before)
                if before != self._drained or not self._known.is_set():
                    self._known.set()
                    self.on_change()

    def _take_in(self, kv: KeyValue) -> None:
        try:
            drain = cluster_codec.decode_drain(kv.key, kv.value)
            host_id = keys.parse_cluster_id(kv.key)
        except RecordCorrupt as error:
            log.error("ignored: %s", error)  # noqa: TRY400  (a stranger's key, no defect of ours)
            return
        self._drained[host_id] = drain

    def _take_out(self, key: bytes) -> None:
        try:
            host_id = keys.parse_cluster_id(key)
        except RecordCorrupt:
            return  # never was a drain
        self._drained.pop(host_id, None)

    def _tell(self, before: Mapping[str, Drain]) -> None:
        """What is new; not all of it again after each outage, and what ended in one too."""
        for host_id, drain in self._drained.items():
            if host_id not in before:
                log.info(
                    "host=%s is drained, %s", host_id, "what runs may finish" if drain.let_finish else "gives back"
                )
        for host_id in before.keys() - self._drained.keys():
            log.info("host=%s is drained no more", host_id)
