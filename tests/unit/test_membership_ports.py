"""Between the choice of etcd's ports and its bind another node may take them: it is then started on others, and this
process must ask it there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from node.cluster.membership import Role
from tests.support.virtual_time import virtual_time
from tests.support.voting import FakeServer, World


@virtual_time
async def test_a_founder_whose_port_was_taken_asks_its_etcd_where_it_listens_now(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    host = world.hosts[0]
    try:
        await host.start(found=True)
        assert host.membership.endpoints() == ("local0:1", "somewhere:1")
        # Nothing can be read from an etcd that is looked for where another one listens: the list does not help.
        host.etcd.is_cut = True
        server = host.membership.server
        assert isinstance(server, FakeServer)
        server.client_address = "local0:5"
        server.tell()
        await asyncio.sleep(60)
        assert host.membership.endpoints() == ("local0:5", "somewhere:1")
        host.etcd.is_cut = False
        await world.wait_for(lambda: host.membership.members != (), what="the list is read")
        assert host.membership.endpoints() == ("local0:5",)
        assert host.role is Role.VOTER
    finally:
        await world.close()
