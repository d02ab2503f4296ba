"""Changes that break no promise: checkers that take one of them for a defect cry wolf. See `mutants.py`."""

from __future__ import annotations

from tests.simulation.mutant import Mutant

HARMLESS = (
    Mutant(
        "peers see to the dead in the opposite order",
        "node/core/sweep.py",
        "key=lambda node_id: (_weight(gone_node_id, node_id), node_id))",
        "key=lambda node_id: (_weight(gone_node_id, node_id), node_id), reverse=True)",
    ),
    Mutant(
        "ends that were not answered are sent again with less jitter",
        "node/running/runner.py",
        "delay_s * random.uniform(0.5, 1.5)",
        "delay_s * random.uniform(0.9, 1.1)",
    ),
    Mutant(
        "pings come a little more often",
        "node/core/fence.py",
        "PINGS_PER_TTL = 4",
        "PINGS_PER_TTL = 5",
    ),
)
