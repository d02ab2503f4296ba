"""This host's own part in etcd: a member of it, or only a client; and by which addresses its clients find it.

The voters' duty (`node/cluster/voters_duty.py`) decides which hosts are members; every host does by itself what that
means for it. It looks at the member list whenever `/cluster/voters` changes, when its own etcd tells something, and on
a slow tick:

* A member was added with this host's peer address, and nothing runs here: start etcd with a **fresh** directory, as a
  learner. First the authority's key is fetched, since every voter must be able to sign.
* This host's member was removed: stop it, move its data aside, go on as a client. Its old data are never started again.
* This host's member has another peer address in the list than here (the address changed while it was away): tell the
  cluster. Only for a voter: an update makes etcd 3.5 forget that a member is a learner (etcd issue 21694).
* The list says that this host was a member before, and there are no data: they were lost. It is not started as the
  old one, whose promises (votes, entries acknowledged) it would not keep. It waits: the duty sees a living node whose
  member does not answer, removes it after the grace period, and adds it again as a new one.

Interruptions. A learner that was added and dies before its first write has no data: it begins again from the list. One
that has data comes back by them, whatever the list says; if it was evicted meanwhile, its peers tell it and it exits
(`ServerEventKind.REMOVED`), or two looks at a list agreed on by a quorum, some seconds apart, do not name it.

`endpoints()` is what all clients of this process use: the own member first where it votes, then the other voters, in an
order of the host's own so that not all plain clients crowd on one. It is a tuple that is swapped whole, so that the
session's thread may read it at any moment. It never becomes empty because of what a list says.

Must not do: decide who votes; found a cluster unless told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from etcd import keys
from etcd.errors import Compacted, StoreError
from etcd.port import Etcd, KeyRange, Member, Range
from etcd.ports import Ports
from etcd.server_flags import EtcdConfig, client_url, peer_url

log = logging.getLogger(__name__)

#: Between two looks when nothing is told.
TICK_S = 5.0
#: For how long a quorum's list must not name this host's member before it counts as removed. The member itself usually
#: hears of it at once; this is for one that reaches no peer, or has not heard of its own addition yet.
MISSING_S = 15.0
READ_TIMEOUT_S = 3.0
#: Failures in a row for this long are worth a warning.
PATIENCE_S = 10.0
#: Data of a member that was removed: kept once, for an operator who was too fast.
ASIDE = "data.removed-"


class Role(StrEnum):
    """Of a host in etcd."""

    VOTER = "voter"
    LEARNER = "learner"
    CLIENT = "client"


class MembershipError(Exception):
    """This host cannot take its part in etcd; the message says what to do."""


class MemberServer(Protocol):
    """As `etcd.server.EtcdServer`."""

    @property
    def client_address(self) -> str: ...

    @property
    def client_url(self) -> str: ...

    @property
    def peer_url(self) -> str: ...

    @property
    def is_answering(self) -> bool: ...

    @property
    def is_removed(self) -> bool: ...

    @property
    def hopeless(self) -> str | None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Membership:
    """One host's part in etcd. `start`, then `run` until it is canceled, then `stop`."""

    def __init__(
        self,
        config: EtcdConfig,
        *,
        make_server: Callable[[EtcdConfig, Callable[[], None]], MemberServer],
        plan_ports: Callable[[EtcdConfig], Ports],
        get_authority: Callable[[], Awaitable[object]],
        remembered: Sequence[str] = (),
        on_change: Callable[[tuple[str, ...], Role], None] = lambda _contacts, _role: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """config: name is the host id; state and initial_cluster are filled in here. make_server: makes an EtcdServer
        that calls the second argument after each of its events. plan_ports: `etcd.server.plan_ports`. get_authority:
        makes sure that the authority's key is on this host; may raise StoreError or MembershipError, and is called
        again later. remembered: HOST:PORT of the voters' client ports, from the last run or from the join. on_change:
        is given HOST:PORT of all voters, for others and for the next run, and the role. now: wall time, for names."""
        self._config = config
        self._make_server = make_server
        self._plan_ports = plan_ports
        self._get_authority = get_authority
        self._on_change = on_change
        self._now = now
        self._server: MemberServer | None = None
        self._endpoints: tuple[str, ...] = tuple(remembered)
        self._peer_url = self._client_url = ""
        self._role = Role.CLIENT
        self._members: tuple[Member, ...] = ()
        self._contacts: tuple[str, ...] = tuple(remembered)
        self._wake = asyncio.Event()
        #: The member that runs here, once it is known.
        self._seat_id: int | None = None
        #: Since when the list does not name this host's running member, by the loop's clock.
        self._missing_since: float | None = None
        self._is_lost_told = False
        self._failing_since: float | None = None

    # What others ask

    def endpoints(self) -> tuple[str, ...]:
        """HOST:PORT for clients of this process, the preferred one first. From any thread."""
        return self._endpoints

    @property
    def contacts(self) -> tuple[str, ...]:
        """HOST:PORT of the voters' client ports, as other hosts reach them."""
        return self._contacts

    def hear_of(self, endpoints: Sequence[str]) -> None:
        """Other nodes say that the voters are here: HOST:PORT each. The own member stays first, and what was known
        stays last; the member list decides as soon as it can be read."""
        own = (self._server.client_address,) if self._server is not None and self._role is Role.VOTER else ()
        self._endpoints = tuple(dict.fromkeys((*own, *endpoints, *self._endpoints)))
        self._wake.set()

    @property
    def hopeless(self) -> str | None:
        """Why the own member does not come up by itself, in words; None where it may, or where there is none."""
        return self._server.hopeless if self._server is not None else None

    @property
    def is_lost(self) -> bool:
        """No quorum of etcd has answered for a while: it may be where this host does not look for it."""
        since = self._failing_since
        return since is not None and asyncio.get_running_loop().time() - since >= PATIENCE_S

    @property
    def role(self) -> Role:
        return self._role

    @property
    def members(self) -> tuple[Member, ...]:
        """The member list as it was last read; empty before."""
        return self._members

    @property
    def peer_url(self) -> str:
        """Where etcd's peers find, or would find, this host."""
        return self._server.peer_url if self._server is not None else self._peer_url

    @property
    def client_url(self) -> str:
        """Where clients on other machines find, or would find, etcd on this host."""
        return self._server.client_url if self._server is not None else self._client_url

    @property
    def server(self) -> MemberServer | None:
        """The own member; None for a plain client."""
        return self._server

    # Its life

    async def start(self, *, found: bool = False, may_hear: bool = False) -> Role:
        """Starts the own member where there are data of one, founds a cluster where told to, and is a client else.

        Does not wait: see `wait_ready`. Raises MembershipError where there is nobody to be a client of, and what
        `EtcdServer.start` raises. found: only for the first start of a founder. may_hear: other nodes are known, which
        may tell where the voters are (`hear_of`).
        """
        ports = self._plan_ports(self._config)
        self._peer_url, self._client_url = peer_url(self._config, ports), client_url(self._config, ports)
        if self._config.has_data or found:
            await self._start_server(replace(self._config, state="new" if found else "existing"))
            self._role = Role.VOTER
        else:
            self._check_others(_address(self._client_url), may_hear=may_hear)
        return self._role

    def _check_others(self, own: str, *, may_hear: bool) -> None:
        """There are no data. A host that remembers itself among the voters lost them: it must not wait for itself."""
        others = tuple(address for address in self._endpoints if address != own)
        if not others and not may_hear:
            raise MembershipError(
                f"etcd's data are missing in {self._config.directory}, and no other member of its cluster is known: "
                "restore the directory from a backup, or begin anew with an empty data directory (data.before-* beside "
                "it are what node recover or node restore kept)"
            )
        if len(others) < len(self._endpoints):
            log.error(
                "etcd's data are missing in %s, where this host had a vote: it goes on as a client of %s. If it was "
                "the only voter, restore the directory from a backup",
                self._config.directory,
                ", ".join(others) or "whatever the other nodes name",
            )

    async def wait_ready(self, etcd: Etcd, timeout_s: float) -> None:
        """Until the cluster answers a linearizable read, through whichever member. Raises MembershipError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            try:
                await etcd.range(Range(keys.cluster_id(), count_only=True), timeout_s=1.0)
            except StoreError as error:
                if loop.time() > deadline:
                    raise MembershipError(
                        f"etcd does not answer within {timeout_s:g} s at {', '.join(self._endpoints)}: {error}. "
                        "More than half of the voters must run and reach each other"
                    ) from error
                await asyncio.sleep(0.05)
            else:
                return

    async def run(self, etcd: Etcd) -> None:
        """Follows the member list until it is canceled. etcd: a client by `endpoints`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(etcd), name="voters' key")
            while True:
                await self.look(etcd)
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()
                self._wake.clear()

    async def stop(self) -> None:
        """Ends the own etcd in order (it hands its leadership on). May be called more than once."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def look(self, etcd: Etcd) -> None:
        """One round: what the member list asks of this host. What does not get through is tried at the next one."""
        try:
            if self._server is not None and self._server.is_removed:
                await self._retire(self._server)
            members = await etcd.members(timeout_s=READ_TIMEOUT_S)
            mine = self._find_mine(members)
            if self._server is None:
                await self._join(members, mine)
            else:
                await self._compare(etcd, self._server, mine)
            self._publish(members, mine)
            self._failing_since = None
        except (StoreError, MembershipError, OSError) as error:
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        """An election, a start, a member that just left: a failure that passes by itself is no news."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        level = logging.WARNING if now - self._failing_since >= PATIENCE_S else logging.DEBUG
        log.log(level, "this host's part in etcd could not be looked after, trying again: %s", error)

    # What a look does

    async def _follow(self, etcd: Etcd) -> None:
        """A look after each change that is told. A change missed here is seen at the next tick."""
        while True:
            try:
                async with etcd.watch([KeyRange(keys.voters_key())]) as batches:
                    async for _ in batches:
                        self._wake.set()
            except (Compacted, StoreError):
                await asyncio.sleep(1.0)

    def _find_mine(self, members: Sequence[Member]) -> Member | None:
        """By name, or, of one that never started, by its address: a new seat before an old one."""
        for member in members:
            if not member.name and self.peer_url in member.peer_urls:
                return member
        return next((member for member in members if member.name == self._config.name), None)

    async def _join(self, members: Sequence[Member], mine: Member | None) -> None:
        if mine is None:
            self._is_lost_told = False
        elif mine.name:
            if not self._is_lost_told:
                log.error(
                    "member %x of etcd was this host's, and its data are gone: it is not started again; "
                    "the cluster removes it and takes this host in as a new member",
                    mine.id,
                )
            self._is_lost_told = True
        else:
            await self._start_as_learner(members, mine)

    async def _start_as_learner(self, members: Sequence[Member], mine: Member) -> None:
        await self._get_authority()
        if self._config.has_data:
            await self._move_aside()
        others = tuple(
            # A member that never started has no name yet; etcd compares addresses, and wants names that differ.
            (member.name or f"{member.id:x}", url)
            for member in members
            if member.id != mine.id
            for url in member.peer_urls
        )
        log.info("this host becomes member %x of etcd, a learner among %d others", mine.id, len(members) - 1)
        port = urlsplit(self.peer_url).port
        await self._start_server(replace(self._config, state="existing", initial_cluster=others, peer_port=port))
        self._seat_id = mine.id
        self._role = Role.LEARNER

    async def _start_server(self, config: EtcdConfig) -> None:
        own = ""

        def on_event() -> None:
            """It may have been started on other ports (those chosen were taken before it bound them). Nothing but this
            tells: the member list is read through these endpoints."""
            nonlocal own
            if self._server is server and server.client_address != own:
                before, own = own, server.client_address
                self._endpoints = tuple(own if address == before else address for address in self._endpoints)
            self._wake.set()

        server = self._make_server(config, on_event)
        try:
            await server.start()
        except BaseException:
            await server.stop()  # canceled in between, it may run already
            raise
        self._server = server
        self._seat_id = self._missing_since = None
        own = server.client_address
        if not config.initial_cluster:  # a learner answers nothing that our clients ask
            self._endpoints = (own, *(a for a in self._endpoints if a not in (own, _address(server.client_url))))

    async def _compare(self, etcd: Etcd, server: MemberServer, mine: Member | None) -> None:
        """The running member and what the list says of it."""
        if mine is None:
            now = asyncio.get_running_loop().time()
            if self._missing_since is None:
                self._missing_since = now
            elif now - self._missing_since >= MISSING_S:
                await self._retire(server)
            return
        self._missing_since = None
        if not mine.name and self._seat_id not in (None, mine.id):
            # What runs here was removed, and does not notice (it hangs): the new seat is for a new one.
            await self._retire(server)
            self._wake.set()
            return
        self._seat_id = mine.id
        if not mine.is_learner and mine.name and mine.peer_urls != (server.peer_url,) and server.is_answering:
            log.info(
                "etcd's peers are told that this host is now at %s, no more at %s", server.peer_url, mine.peer_urls
            )
            await etcd.update_member(mine.id, [server.peer_url])

    async def _retire(self, server: MemberServer) -> None:
        """From member to client."""
        log.warning("this host's etcd is no member any more: its data are put aside, and it goes on as a client")
        self._peer_url, self._client_url = server.peer_url, server.client_url
        await server.stop()
        # Before the member is forgotten: interrupted here, the next start finds the data, and its peers tell it again.
        await self._move_aside()
        self._server = None
        self._seat_id = self._missing_since = None
        self._role = Role.CLIENT
        others = tuple(address for address in self._endpoints if address != server.client_address)
        self._endpoints = others or self._endpoints

    async def _move_aside(self) -> None:
        directory = self._config.directory
        target = directory / f"{ASIDE}{int(self._now())}"
        older = [path for path in directory.glob(f"{ASIDE}*") if path != target]
        await asyncio.to_thread(_replace_directory, self._config.data_dir, target, older)

    def _publish(self, members: Sequence[Member], mine: Member | None) -> None:
        self._members = tuple(members)
        server = self._server
        if server is None or mine is None:
            role = Role.CLIENT if server is None else self._role
        else:
            role = Role.LEARNER if mine.is_learner else Role.VOTER
        voters = [member for member in members if not member.is_learner and member.client_urls]
        contacts = tuple(sorted(_address(member.client_urls[0]) for member in voters))
        others = sorted((m for m in voters if mine is None or m.id != mine.id), key=lambda m: self._distance(m.id))
        own = (server.client_address,) if server is not None and role is Role.VOTER and mine is not None else ()
        endpoints = (*own, *(_address(member.client_urls[0]) for member in others))
        if endpoints:
            self._endpoints = endpoints
        if (contacts and contacts != self._contacts) or role is not self._role:
            self._contacts, self._role = contacts or self._contacts, role
            log.info("etcd: this host is a %s; the voters are at %s", role, ", ".join(self._contacts))
            self._on_change(self._contacts, role)

    def _distance(self, member_id: int) -> bytes:
        """An order of the members that differs from host to host, and stays."""
        return blake2b(f"{self._config.name} {member_id}".encode(), digest_size=8).digest()


def _address(url: str) -> str:
    """HOST:PORT of a URL."""
    return urlsplit(url).netloc


def _replace_directory(source: Path, target: Path, older: Sequence[Path]) -> None:
    if target.exists():
        shutil.rmtree(target)
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)
    for path in older:
        shutil.rmtree(path, ignore_errors=True)
