"""The engine's descriptions of containers, read into our words.

Owns the parsing of what an engine answers about a container. Must not talk to an engine.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from node_agent.domain.container import ContainerReport, Phase
from node_agent.domain.run import ContainerId, RunId
from node_agent.runtime.connection import one_line
from node_agent.runtime.spec import LABEL_RUN

_PHASES = {"created": Phase.CREATED, "exited": Phase.EXITED, "dead": Phase.EXITED, "removing": Phase.EXITED}
_NEVER_YEAR = 1


def report_of(found: Mapping[str, Any]) -> ContainerReport:
    """Read the engine's description of one container."""
    state = found.get("State") or {}
    phase = _PHASES.get(str(state.get("Status")), Phase.RUNNING)
    ended = phase is Phase.EXITED
    started_at, finished_at = seconds_of(state.get("StartedAt")), seconds_of(state.get("FinishedAt"))
    if started_at is not None and finished_at is not None:
        # The engine notes the start after the fact: a container of a few milliseconds may have ended before it.
        finished_at = max(started_at, finished_at)
    return ContainerReport(
        id=ContainerId(str(found["Id"])),
        run_id=run_of_labels((found.get("Config") or {}).get("Labels")),
        phase=phase,
        exit_code=int(state.get("ExitCode", 0)) if ended else None,
        out_of_memory=bool(state.get("OOMKilled")),
        paused=bool(state.get("Paused")),
        started_at=started_at,
        finished_at=finished_at if ended else None,
        error=one_line(str(state.get("Error") or "")),
        pid=int(state.get("Pid") or 0) or None,
    )


def run_of_labels(labels: Mapping[str, str] | None) -> RunId | None:
    """Read which run a container belongs to; None when its label names none."""
    value = str((labels or {}).get(LABEL_RUN, ""))
    return RunId(int(value)) if value.isascii() and value.isdigit() else None


def seconds_of(moment: object) -> float | None:
    """Read a moment as seconds since the epoch; None for the engine's word for never."""
    text = str(moment or "")
    try:
        found = datetime.fromisoformat(_microseconds(text))
    except ValueError:
        return None
    return None if found.year == _NEVER_YEAR else found.timestamp()


def _microseconds(text: str) -> str:
    # Nine digits after the point, fewer when they end in zero; Python reads six.
    whole, point, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return whole + point + rest[:digits][:6] + rest[digits:] if point else text
