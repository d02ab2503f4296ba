"""Deliberate defects of what nodes do with each other and with etcd: guards, the lifecycle, the fence, watches, claims;
and of the instruments. See `mutants.py`."""

from __future__ import annotations

from tests.simulation.mutant import Mutant

_TRANSITIONS = "etcd/transitions.py"
_SWEEPER = "node/cluster/sweeper.py"
_KEEPER = "node/cluster/lease_keeper.py"
_INCARNATION = "node/incarnation.py"
_RUNNER = "node/running/runner.py"
_CLAIMER = "node/running/claimer.py"
_OWN_KEYS = "node/running/own_keys.py"
_HOST = "tests/simulation/host.py"
_SANDBOXES = "tests/simulation/sandboxes.py"
_TELL = "if fence.answered(lane, answer.ttl_s):\n                            "
_EACH = "        for command in list(self.commands.values()):\n            "
_LATER = "            self.process.call_later(0.001, "

PROTOCOL_MUTANTS = (
    # Guards. That each of them is needed, alone or as a second line, is shown by tests/model.
    Mutant(
        "a claim compares nothing but its node",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT, Guard.NODE_MINE),",
        "guards=(Guard.NODE_MINE,),",
        rules=("StatusAgreesWithRecord", "LegalTransition", "TerminalIsFinal", "AttemptsAscend"),
    ),
    Mutant(
        "a claim does not look whether its node lives",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT, Guard.NODE_MINE),",
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT),",
        rules=("ClaimNeedsLiveLease",),
    ),
    Mutant(
        "an owner's write does not look whether its node lives",
        _TRANSITIONS,
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)",
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE)",
        rules=("ClaimNeedsLiveLease",),
    ),
    Mutant(
        "an owner's write compares nothing but its node",
        _TRANSITIONS,
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)",
        "_AS_OWNER = (Guard.NODE_MINE,)",
        rules=("TerminalIsFinal", "StatusAgreesWithRecord", "LegalTransition"),
    ),
    Mutant(
        "a requeue does not look whether the owner is gone",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),",
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT),",
        rules=("RequeueNeedsDeadOwner",),
        # Alone it does no harm: a sweep lists nodes and tasks at one revision, and no node comes back.
        beside=((_SWEEPER, "            seen.nodes,\n", "            frozenset({self._identity.node_id}),\n"),),
    ),
    Mutant(
        "a requeue does not compare the record's mod_revision",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),",
        "guards=(Guard.RUNNING_PRESENT, Guard.OWNER_GONE),",
        rules=("LegalTransition",),
    ),
    Mutant(
        "a requeue compares nothing but its owner's node",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),",
        "guards=(Guard.OWNER_GONE,),",
        rules=("LegalTransition", "TerminalIsFinal", "StatusAgreesWithRecord"),
    ),
    Mutant(
        "an owner's write does not compare the record's mod_revision",
        _TRANSITIONS,
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)",
        "_AS_OWNER = (Guard.CLAIM_MINE, Guard.NODE_MINE)",
        rules=("LegalTransition",),
    ),
    Mutant(
        "a cancel of a queued task compares nothing",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT),\n        writes=_MOVE,\n        reads=(Read.RECORD,),",
        "guards=(),\n        writes=_MOVE,\n        reads=(Read.RECORD,),",
        rules=("StatusAgreesWithRecord", "LegalTransition", "TerminalIsFinal"),
    ),
    Mutant(
        "a request to cancel does not touch the running key",
        _TRANSITIONS,
        "writes=(Write.TOUCH_RUNNING, Write.RECORD),",
        "writes=(Write.RECORD,),",
        rules=("CancelIsObeyed",),
    ),
    Mutant(
        "a move leaves the old index key",
        _TRANSITIONS,
        "_MOVE = (Write.REMOVE_INDEX, Write.ADD_INDEX, Write.RECORD)",
        "_MOVE = (Write.ADD_INDEX, Write.RECORD)",
        rules=("StatusAgreesWithRecord",),
    ),
    Mutant(
        "a submit writes over what is there",
        _TRANSITIONS,
        "guards=(Guard.RECORD_ABSENT,),",
        "guards=(),",
        rules=("StatusAgreesWithRecord", "LegalTransition", "TerminalIsFinal"),
    ),
    # the lifecycle
    Mutant(
        "a requeue forgets that a cancel was asked for",
        "etcd/store.py",
        "after = lifecycle.requeue(seen.task, now=now)",
        'after = lifecycle.requeue(__import__("dataclasses").replace(seen.task, cancel_requested=False), now=now)',
        rules=("LegalTransition",),
    ),
    # the fence
    Mutant(
        "the deadline lies after the end of the lease",
        "node/core/fence.py",
        "MARGIN_S = 0.5",
        "MARGIN_S = -3.0",
        rules=("NoTwoLiveRuns", "FencedNodeRunsNothing"),
    ),
    Mutant(
        "the deadline counts from the answer, not from the sending",
        _KEEPER,
        _TELL + "self._on_deadline(fence.deadline)",
        _TELL + "self._on_deadline(self._clock() + self._ttl_s)",
        rules=("NoTwoLiveRuns", "FencedNodeRunsNothing"),
    ),
    Mutant(
        "a lost lease kills nothing, and the next life does not wait",
        _INCARNATION,
        "await _first_of(gone, hurried, timeout_s=FENCE_MAX_S)\n",
        "return\n",
        rules=("NoTwoLiveRuns",),
        beside=((_INCARNATION, "is_lost = True\n        self._around.spawner.fence()\n", "is_lost = True\n"),),
    ),
    Mutant(
        "the lease is revoked while commands may live",
        "node/lives.py",
        "await self._close(revoke=incarnation.is_gone)",
        "await self._close(revoke=True)",
        rules=("NoTwoLiveRuns", "FencedNodeRunsNothing"),
        # Alone it does no harm: a stop waits until nothing lives, a spawner that does not kill is killed before the
        # patience (10 s) is over, and so is, by its PID 1, what a spawner leaves that hears of no deadline.
        beside=(
            (_SANDBOXES, "if silent_s >= SILENT_S:", "if False:"),
            (_SANDBOXES, "if not command.is_frozen:", "if False:"),
        ),
    ),
    Mutant(
        "the deadline of a lease is never told",
        _KEEPER,
        _TELL + "self._on_deadline(fence.deadline)",
        _TELL + "pass",
        rules=("NoTwoLiveRuns",),
        beside=(
            (_KEEPER, "        self._on_deadline(fence.deadline)\n        return identity", "        return identity"),
        ),
    ),
    # watches and sweeps
    Mutant(
        "a watch begins without a listing",
        "etcd/watch.py",
        "yield Listing(listed.kvs, listed.revision, listed.more)",
        "yield Listing((), listed.revision, listed.more)",
        rules=("NoIdleWhileQueued", "EventuallyTerminal"),
    ),
    Mutant(
        "a watch begins a revision late",
        "etcd/watch.py",
        "start_revision=listed.revision + 1",
        "start_revision=listed.revision + 2",
        rules=("NoIdleWhileQueued", "CancelIsObeyed", "OrphansAreSeenTo"),
    ),
    Mutant(
        "nobody sweeps at the start or on a tick",
        _SWEEPER,
        "if left or not self._is_swept or (is_tick and is_tick_mine(self._live, self._identity.node_id)):",
        "if False:",
        rules=("OrphansAreSeenTo", "EventuallyTerminal"),
    ),
    Mutant(
        "the news of a death has nobody look",
        _SWEEPER,
        "gone = self._gone.setdefault(node_id, _Gone(time.monotonic()))",
        "gone = _Gone(time.monotonic())",
        rules=("OrphansAreSeenTo",),
    ),
    # claims
    Mutant(
        "a claim without an answer is taken for a failed one",
        _CLAIMER,
        "unknown.append((offer, seen))",
        "self._lost(offer)",
        rules=("ClaimedStartsSoon",),
        # Alone it costs 5 s: the comparison of the own keys gives back what nobody knows. That one alone is for a
        # claim that is given up on, which no node does that lives: it asks until it is answered.
        beside=((_OWN_KEYS, "await self._give_back(task_id, fence_revision)", "pass"),),
    ),
    Mutant(
        "an end without an answer is not written again",
        _RUNNER,
        "while not self.is_lost:",
        "for _ in range(1):",
        rules=("EndsAreTrue",),
    ),
    Mutant(
        "claims are booked nowhere",
        _CLAIMER,
        "if not self._ledger.take(task_id, offer.requirements):",
        "if False:",
        # What is claimed beyond the room is refused where it is to start, and given back again and again.
        rules=("CalmNodeKeepsItsTasks", "NeverAboveCapacity"),
    ),
    Mutant(
        "what is released was never there",
        _RUNNER,
        "        self._ledger.release(run.task.id)\n        if run.sandbox is not None:",
        "        if run.sandbox is not None:",
        rules=("NoIdleWhileQueued", "EventuallyTerminal"),
    ),
    Mutant(
        "a cancel that comes before the claim's answer is forgotten",
        _OWN_KEYS,
        "version = self._touched.pop(claim.task.id, None)",
        "version = None",
        rules=("CancelIsObeyed",),
    ),
    Mutant(
        "a touched key is not looked at, and never compared",
        _OWN_KEYS,
        "if seen.task.cancel_requested:",
        "if False:",
        rules=("CancelIsObeyed",),
    ),
    Mutant(
        "a stop does not give back what it runs",
        _INCARNATION,
        "        await self._drain(lost, hurry)",
        "        pass",
        rules=("StopsInTime",),
    ),
    # hosts, and the instruments themselves
    Mutant(
        "two nodes of one host may live beside each other",
        "node/cluster/host_record.py",
        "if seen.record is not None:\n        compares.append",
        "if False:\n        compares.append",
        rules=("OneNodePerHost",),
        # Alone it does no harm: a start looks first, a node that is gone never comes back under its id, and whoever
        # registers in between writes the host's record, which is compared.
        beside=((_KEEPER, "if seen.record is None or not seen.is_in_use:", "if True:"),),
    ),
    Mutant(
        "a start clears nothing that was left",
        _HOST,
        "self._host.end_leftovers(but=self.spawner)",
        "pass",
        rules=("NoTwoLiveRuns",),
    ),
    Mutant(
        "a start clears what the other node of its machine runs",
        _HOST,
        "if spawner is but or not self._is_mine(spawner):",
        "if spawner is but:",
        rules=("ClaimedStartsSoon", "CalmNodeKeepsItsTasks"),
    ),
    Mutant(
        "a spawner ignores the deadline",
        _SANDBOXES,
        "command.freeze()",
        "pass",
        rules=("NoTwoLiveRuns", "FencedNodeRunsNothing"),
        # Alone it kills what could have gone on: PID 1 of each sandbox ends it 0.3 s later, before the lease does.
        beside=((_SANDBOXES, "if not command.is_frozen:", "if False:"),),
    ),
    Mutant(
        "commands outlive a node that was killed",
        _SANDBOXES,
        "self.process.call_later(self._chance.uniform(*ORPHANS_DIE_S), self.end_all)",
        "pass",
        rules=("KilledLeavesNothing",),
    ),
    Mutant(
        "a thaw comes before the kill",
        _SANDBOXES,
        "self._is_closed = True\n" + _EACH + 'command.end("fence")',
        "self._is_closed = True\n" + _EACH + "command.thaw()\n" + _LATER + 'command.end, "fence")',
        rules=("NoTwoLiveRuns",),
    ),
)
