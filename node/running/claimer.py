"""Claims queued tasks: follows the queue, asks the policy (`node/core/claim.py`), claims, hands on what was won.

A task under claim is out of the queue's view and booked in the ledger from before its claim is sent until its sandbox
is empty, so that capacity is never promised twice, whatever becomes of an answer. A claim whose outcome is unknown is
sent again until it is answered; meanwhile its booking stands. A task that is claimed ahead is not booked: the runner
books it when it has room for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from etcd import codec, keys
from etcd.errors import OutcomeUnknown, RecordCorrupt, StoreError
from etcd.identity import Identity
from etcd.port import Etcd, KeyValue, WatchBatch
from etcd.store import Claim, TaskStore, Versioned
from etcd.watch import Listing, list_and_watch
from node.core.claim import NOTHING, ClaimPlan, Situation, plan_claims
from node.core.ids import uuid7_time
from node.core.model import Capacity, Requirements, Status
from node.core.queue_view import Offer, QueueView
from node.core.requirements import Ledger
from node.running.own_keys import OwnKeys
from node.running.rates import Rate, Smoothed
from node.running.read_ahead import ReadAhead
from node.running.runner import Runner

log = logging.getLogger(__name__)

CLAIM_TIMEOUT_S = 5.0
#: While claims are closed (stopping, at risk, host in trouble), how often to see whether they are open again.
CLOSED_LOOK_S = 0.25
#: A timer may go off a moment early (asyncio's clock resolution): not to be set for what is left of it.
LOOK_MIN_S = 0.001
#: A look costs a node about a microsecond for each offer. Among many nodes the queue changes faster than that by what
#: others claim, so after a look that found nothing such news wait for ten times what it cost.
PAUSE_PER_OFFER_S = 10e-6
#: After the store failed to answer, before the same tasks are tried again.
RETRY_DELAY_S = 0.5
#: For the answer of a submit that etcd has applied, before the record is read after all.
SUBMIT_ANSWER_MAX_S = 0.02


class Claimer:
    """The claiming duty of one incarnation."""

    def __init__(
        self,
        etcd: Etcd,
        store: TaskStore,
        identity: Identity,
        *,
        ledger: Ledger,
        runner: Runner,
        own_keys: OwnKeys,
        queue_window: int,
        is_open: Callable[[], bool],
    ) -> None:
        self._etcd = etcd
        self._store = store
        self._identity = identity
        self._ledger = ledger
        self._runner = runner
        self._own_keys = own_keys
        self._is_open = is_open
        self._view = QueueView(identity.node_id, ledger.capacity, limit=queue_window)
        self._window = queue_window
        self._round_trip = Smoothed()
        self._starts = Rate()
        #: Claims sent and not answered: those with a booking, and those without.
        self._under_way = 0
        self._ahead_under_way: set[str] = set()
        #: Offers seen while a claim of the same task is under way.
        self._again: dict[str, Offer] = {}
        self._read_ahead = ReadAhead(store, self._view)
        #: Owns the claims under way; None: nothing is claimed (yet, or any more).
        self._group: asyncio.TaskGroup | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._next_look_at: float | None = None
        #: As the newest plan says; whatever makes room looks by itself.
        self._has_room = True
        #: By the monotonic clock: until then news of the queue alone are not looked at.
        self._rests_until = 0.0
        #: Id of the task that free capacity is held for, as the newest plan has it; None: none.
        self.held_for: str | None = None

    @property
    def under_way(self) -> int:
        """Claims sent and not answered."""
        return self._under_way + len(self._ahead_under_way)

    def set_nodes(self, nodes: Mapping[str, Capacity]) -> None:
        """The live nodes, as the sweeper sees them."""
        self._view.set_nodes(dict(nodes))
        self.look()

    async def run(self, stop: asyncio.Event) -> None:
        """Claims until `stop`; returns when every claim sent has been answered and handed on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            following = group.create_task(self._follow_queue(), name="queue")
            try:
                await stop.wait()
            finally:
                self._group = None
                self._set_next_look(None)
                following.cancel()

    async def _follow_queue(self) -> None:
        # No more than the window holds: of a long queue every node would list all, once for each window of it.
        limit = self._window
        while True:
            async with contextlib.aclosing(list_and_watch(self._etcd, keys.queued(), limit=limit)) as queue:
                async for news in queue:
                    self._take_in(news)
                    self._hear()
                    if self._view.needs_listing:
                        # Most of a truncated window is used up; or hardly any of the oldest can ever fit here, and
                        # those that can are further back.
                        limit = 0 if isinstance(news, Listing) else self._window
                        break

    def _take_in(self, news: Listing | WatchBatch) -> None:
        now = time.monotonic()
        if isinstance(news, Listing):
            self._read_ahead.clear()
            beyond = _id_text(news.kvs[-1]) if news.is_cut and news.kvs else None
            queued = (found for kv in news.kvs if (found := _queued(kv)) is not None)
            self._view.reset(queued, now=now, beyond=beyond)
            return
        for event in news.events:
            task_id = _id_text(event.kv)
            self._read_ahead.drop(task_id)
            if event.is_delete:
                self._again.pop(task_id, None)
                self._view.remove(task_id)
            elif not self._view.is_beyond(task_id) and (found := _queued(event.kv)) is not None:
                fresh = self._store.fresh.take(task_id)
                if fresh is not None and fresh.mod_revision == event.kv.mod_revision:
                    self._read_ahead.hold(fresh)
                _, requirements, age_s = found
                self._view.add(task_id, requirements, now=now, age_s=age_s)

    def _hear(self) -> None:
        """Looks, for the queue has changed; a little later where it has just been looked at in vain, and not at all
        where that cannot matter: most of what a busy cluster's nodes hear comes while they are full."""
        if not self._has_room:
            return
        if time.monotonic() >= self._rests_until:
            self.look()
        elif self._next_look_at is None or self._next_look_at > self._rests_until:
            self._set_next_look(self._rests_until)

    def look(self) -> None:
        """Decides, and claims what is decided. To be called whenever a decision may come out differently: the queue,
        the capacity or the peers have changed.

        Not a coroutine, so that a claim leaves in the same round of the loop, and so in the same transaction, as the
        end of the task that made room for it.
        """
        while self._group is not None:
            plan = self._plan()
            self.held_for, self._has_room = plan.held_for, plan.has_room
            if not (plan.claim or plan.ahead):
                self._set_next_look(plan.look_again_at)
                self._rests_until = time.monotonic() + plan.looked_at * PAUSE_PER_OFFER_S
                return
            if offers := [offer for task_id in plan.claim if (offer := self._book(task_id)) is not None]:
                self._under_way += len(offers)
                self._group.create_task(self._claim(offers), name="claim")
            if offers := [offer for task_id in plan.ahead if (offer := self._take(task_id)) is not None]:
                self._ahead_under_way.update(offer.task_id for offer in offers)
                self._group.create_task(self._claim(offers, is_ahead=True), name="claim ahead")
            if wanted := self._read_ahead.wanted():
                self._group.create_task(self._read_ahead.read(wanted), name="read ahead")

    def _set_next_look(self, at: float | None) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        self._next_look_at = at
        if at is not None:
            delay_s = max(LOOK_MIN_S, at - time.monotonic())
            self._next_look = asyncio.get_running_loop().call_later(delay_s, self.look)

    def _plan(self) -> ClaimPlan:
        now = time.monotonic()
        if not self._is_open() or now < self._runner.paused_until:
            return ClaimPlan(look_again_at=now + CLOSED_LOOK_S)
        if not len(self._view):
            return NOTHING
        turnover = self._runner.turnover
        situation = Situation(
            now=now,
            free=self._ledger.free,
            load=self._ledger.load,
            unstarted=self._under_way + self._runner.unstarted,
            ahead=len(self._ahead_under_way) + self._runner.waiting,
            start_rate_per_s=self._starts.per_s(now),
            end_rate_per_s=turnover.per_s(now),
            smallest_end=turnover.smallest,
            round_trip_s=self._round_trip.value,
        )
        return plan_claims(self._view, situation)

    def _book(self, task_id: str) -> Offer | None:
        """As `_take`, and reserves what the task needs."""
        offer = self._take(task_id)
        if offer is None:
            return None
        if not self._ledger.take(task_id, offer.requirements):
            self._own_keys.claiming.discard(task_id)
            return None
        return offer

    def _take(self, task_id: str) -> Offer | None:
        """Takes the offer out of the view, to be claimed.

        None for a task whose claim is under way: a listing taken before that claim may show it once more.
        """
        offer = self._view.remove(task_id)
        if offer is None:
            return None
        if task_id in self._own_keys.claiming:
            # Queued again, or shown by an old listing: looked at once more when the claim under way is answered.
            self._again[task_id] = offer
            return None
        self._own_keys.claiming.add(task_id)
        return offer

    async def _claim(self, offers: Sequence[Offer], *, is_ahead: bool = False) -> None:
        """Reads the records and claims them; every offer ends won, lost or back in the view."""
        started = time.monotonic()
        await self._wait_for_submits(offers)
        known = [(offer, self._read_ahead.take(offer.task_id)) for offer in offers]
        unread = [offer for offer, seen in known if seen is None]
        try:
            read = await self._store.read_each([offer.task_id for offer in unread])
        except StoreError as error:
            await self._try_later(offers, error)
            return
        waiting: list[tuple[Offer, Versioned]] = []
        for offer, seen in (*known, *zip(unread, read, strict=True)):
            if isinstance(seen, RecordCorrupt):
                log.error("task=%s cannot be claimed: %s", offer.task_id, seen)
            elif seen is not None and seen.task.status is Status.QUEUED:
                waiting.append((offer, seen))
        found = {offer.task_id for offer, _ in waiting}
        for offer in offers:
            if offer.task_id not in found:
                self._lost(offer)
        # The same moment in every try: by it the store knows an earlier try of this claim that was applied after all.
        now = time.time()
        while waiting:
            waiting = await self._send(waiting, now, is_ahead)
        self._round_trip.add(time.monotonic() - started)

    async def _wait_for_submits(self, offers: Sequence[Offer]) -> None:
        """The news of a task that is submitted through this node may come before the submit's own answer, which
        brings the record, and sooner than a read does."""
        fresh = self._store.fresh
        found = [(offer, submit) for offer in offers if (submit := fresh.find_submit(offer.task_id)) is not None]
        if not found:
            return
        await asyncio.wait({submit for _, submit in found}, timeout=SUBMIT_ANSWER_MAX_S)
        for offer, _ in found:
            seen = fresh.take(offer.task_id)
            if seen is not None:
                self._read_ahead.hold(seen)

    async def _send(
        self, waiting: Sequence[tuple[Offer, Versioned]], now: float, is_ahead: bool
    ) -> list[tuple[Offer, Versioned]]:
        """Sends these claims once; gives those whose outcome is unknown: they may be ours, and only the same guarded
        transaction, sent again, tells."""
        answers = await self._store.claim_many(
            [seen for _, seen in waiting], self._identity, now=now, timeout_s=CLAIM_TIMEOUT_S, is_patient=is_ahead
        )
        unknown: list[tuple[Offer, Versioned]] = []
        refused: list[Offer] = []
        refusal: StoreError | None = None
        for (offer, seen), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, OutcomeUnknown):
                unknown.append((offer, seen))
            elif isinstance(answer, StoreError):
                refused.append(offer)
                refusal = answer
            elif answer is None:
                log.debug("task=%s claim lost", offer.task_id)
                self._lost(offer)
            else:
                self._won(offer, answer)
        if unknown:
            log.warning("%d claims are not settled yet, sending them again", len(unknown))
        self.look()
        if refusal is not None:
            await self._try_later(refused, refusal)
        return unknown

    def _won(self, offer: Offer, claim: Claim) -> None:
        self._settle(offer)
        self._again.pop(offer.task_id, None)
        self._starts.add(time.monotonic())
        self._own_keys.claimed(claim)

    def _lost(self, offer: Offer) -> None:
        """Another was faster, or it was canceled; or it is ours since before, and an old listing showed it again."""
        self._drop(offer)
        self.look()

    def _drop(self, offer: Offer) -> None:
        self._settle(offer)
        self._own_keys.not_claimed(offer.task_id)
        run = self._runner.runs.get(offer.task_id)
        if run is None or not run.holds_reservation:
            self._ledger.release(offer.task_id)
            self._runner.start_waiting()
        again = self._again.pop(offer.task_id, None)
        if again is not None:
            now = time.monotonic()
            self._view.add(again.task_id, again.requirements, now=now, age_s=again.age_s(now))

    async def _try_later(self, offers: Sequence[Offer], error: StoreError) -> None:
        log.warning("%d tasks could not be claimed, trying again: %s", len(offers), error)
        await asyncio.sleep(RETRY_DELAY_S)
        now = time.monotonic()
        for offer in offers:
            self._drop(offer)
            self._view.add(offer.task_id, offer.requirements, now=now, age_s=offer.age_s(now))
        self.look()

    def _settle(self, offer: Offer) -> None:
        if offer.task_id in self._ahead_under_way:
            self._ahead_under_way.discard(offer.task_id)
        else:
            self._under_way -= 1
        self._own_keys.claiming.discard(offer.task_id)


def _id_text(kv: KeyValue) -> str:
    """Where a queued key lies in the order of ids, also where a stranger wrote it."""
    return kv.key.removeprefix(keys.queued().key).decode(errors="replace")


def _queued(kv: KeyValue) -> tuple[str, Requirements, float] | None:
    """Id, requirements and age in seconds of a queued key; None for what is none of ours."""
    try:
        task_id = keys.parse_index_key(kv.key).task_id
        requirements = codec.requirements_of_offer(kv.value)
    except RecordCorrupt as error:
        log.error("ignored: %s", error)  # noqa: TRY400  (a stranger's key, no defect of ours)
        return None
    made_at = uuid7_time(task_id)
    return task_id, requirements, max(0.0, time.time() - made_at) if made_at is not None else 0.0
