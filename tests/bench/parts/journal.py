"""A journal of many finished runs beside an empty one; tests/bench/large_journal.py measures it."""

from dataclasses import asdict
from typing import Any

from tests.bench.large_journal import measured
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.lab.places import say
from tests.lab.sandbox import SandboxLab


def measure(_: Stage, scale: Scale) -> dict[str, Any]:
    """Start an agent with an empty journal and one with a large one, and ask both what people ask."""
    say(f"a journal of {scale.journal:,} runs …")
    with SandboxLab(("alpha",)) as lab:
        empty, large = measured(lab, 0), measured(lab, scale.journal)
    return {"runs": scale.journal, "empty": asdict(empty), "large": asdict(large)}
