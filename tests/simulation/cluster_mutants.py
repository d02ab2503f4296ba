"""Defects of what a cluster does with its hosts: removals, copies of a data directory, retention, duties, votes."""

from __future__ import annotations

from tests.simulation.mutant import Mutant

_HOST_RECORD = "node/cluster/host_record.py"
_DRAIN = "node/api/drain.py"
_NO_REMOVAL = "        Compare(keys.removed_key(host.id), Target.VERSION, Relation.EQUAL, 0),\n"
_NODE_ABSENT = "                Compare(keys.node(host.node_id), Target.VERSION, Relation.EQUAL, 0),\n"

CLUSTER_MUTANTS = (
    Mutant(
        "a host that was removed may come back as what it was",
        _HOST_RECORD,
        _NO_REMOVAL,
        "",
        rules=("RemovedStaysOut",),
        beside=(("node/cluster/lease_keeper.py", "if seen.is_removed:", "if False:"),),
    ),
    Mutant(
        "a host is removed while its node lives",
        _DRAIN,
        _NODE_ABSENT,
        "",
        rules=("RemovedStaysOut",),
        beside=((_DRAIN, "if node.is_living:", "if False:"),),
    ),
    Mutant(
        "a copy of a data directory ends the lease of the node that it was copied from",
        "tests/simulation/host.py",
        "if last is not None and last.machine_id == self._host.machine_id:",
        "if last is not None:",
        rules=("CalmNodeKeepsItsLease",),
    ),
    Mutant(
        "a name is given to two who ask for it",
        "node/joining/names.py",
        "if not may_claim(name, claim, host_id=host_id, taken=(), now=now):",
        "if False:",
        rules=("NamesAreUnique",),
        beside=(("node/joining/names.py", "if name not in taken and await", "if await"),),
    ),
    Mutant(
        "retention believes the clocks",
        "node/core/retention.py",
        "if ended.revision <= settled and (place < excess or ended.ended_s < now - limits.max_age_s)",
        "if (place < excess and ended.ended_s < now - limits.keep_s) or ended.ended_s < now - limits.max_age_s",
        rules=("ForgottenOnlyWhenDue", "NothingLost"),
    ),
    Mutant(
        "retention forgets all that it may, once there is one too many",
        "node/core/retention.py",
        "excess = max(0, total - limits.max_count)",
        "excess = total",
        rules=("ForgottenOnlyWhenDue",),
    ),
    Mutant(
        "retention leaves the terminal key",
        "etcd/transitions.py",
        "writes=(Write.REMOVE_INDEX, Write.REMOVE_RECORD),",
        "writes=(Write.REMOVE_RECORD,),",
        rules=("StatusAgreesWithRecord",),
    ),
    Mutant(
        "a submit of another task under an id that is taken is acknowledged",
        "etcd/store.py",
        "if found.task.spec != task.spec:",
        "if False:",
        rules=("OneIdOneTask",),
    ),
    Mutant(
        "a duty stays with a node that is gone",
        "etcd/duty.py",
        "if holder is not None and await self._is_there(holder, deadline):",
        "if holder is not None:",
        rules=("HistoryIsBounded",),
    ),
    Mutant(
        "a learner is never given its vote",
        "node/core/voters.py",
        "        return Promote(learner.id)\n",
        '        return Wait(why="")\n',
        rules=("VotersAreRestored",),
    ),
)
