"""How long each step may take before it counts as stuck, and what the control loop then knows of it.

A stuck step is a fault of the disk or the engine below it: nothing ends a system call that hangs. So the run is taken
further without it, once its ending is decided, and the thread that hangs is replaced (pool.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from node_agent.domain.run import RunId

STEP_SECONDS: Mapping[str, float] = MappingProxyType(
    {
        "admit": 180.0,
        "announce": 120.0,
        "verify": 120.0,
        "create": 120.0,
        "start": 120.0,
        "observe": 60.0,
        "filter": 600.0,
        "stop": 120.0,
        "remove": 120.0,
        "kill": 60.0,
    }
)
"""Seconds. `pull` and `report` are not here: limits.pull_time and the rules of reports bound them."""

ABANDONED = frozenset({"admit", "announce", "verify", "create", "start", "observe", "filter"})
"""Steps without which a run that is to end may be taken further; none of them is ever due again for such a run."""

KILL_AFTER_SECONDS = 2.0
"""A step usually ends sooner than this, and the run's own stop step then ends its container."""
KILL_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class StuckStep:
    """A step that takes longer than its bound."""

    run_id: RunId
    step: str
    seconds: float
    is_replaced: bool
    """Whether another thread does the work of the one that hangs."""

    def __str__(self) -> str:
        where = "" if self.is_replaced else ", and its thread could not be replaced"
        return f"step {self.step} of run {self.run_id} takes {self.seconds:.0f} s{where}"


def bound_of(step: str) -> float:
    """Return how many seconds the step may take."""
    return STEP_SECONDS.get(step, float("inf"))
