"""What our agent keeps of a run: the moments in its journal, and the calls to the server in its debug log.

Owns the reading of both. Must not know what is made of the moments.
"""

import contextlib
import sqlite3
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from node_agent.domain.run import State
from node_agent.store.journal import FILE_NAME
from tests.bench.failures import BenchError
from tests.bench.figures import Interval
from tests.lab.agents import AgentProcess

LATE_SECONDS = 30
LOOK_SECONDS = 0.02
_MOMENTS = """\
SELECT ?, received_at FROM run WHERE run_id = ? UNION ALL SELECT to_state, at FROM transition WHERE run_id = ?
"""
_CALL_EVENT = "server_call"
_BY_RUN = ("PATCH /run/", "POST /token/container", "GET /run", "POST /task")


def moments_of(agent: AgentProcess, run_id: int, *, until: State) -> dict[str, float]:
    """Return when a run reached each state, once it reached the one that is waited for."""
    deadline = time.monotonic() + LATE_SECONDS
    while until.name not in (found := _moments(agent, run_id)):
        if time.monotonic() > deadline:
            raise BenchError(f"run {run_id} did not become {until.name.lower()}:\n{agent.log_tail()}")
        time.sleep(LOOK_SECONDS)
    return found


def _moments(agent: AgentProcess, run_id: int) -> dict[str, float]:
    opened = sqlite3.connect(f"file:{agent.state_dir / FILE_NAME}?mode=ro", uri=True, timeout=10)
    with contextlib.closing(opened) as journal:
        rows = journal.execute(_MOMENTS, (int(State.RECEIVED), run_id, run_id)).fetchall()
    return {State(state).name: float(at) for state, at in rows}


def calls_between(agent: AgentProcess, first: float, last: float) -> list[tuple[str, Interval]]:
    """Return the calls for runs that ended in this time, by what was called."""
    calls = [_call(line) for line in agent.log_lines() if line.get("event") == _CALL_EVENT]
    return [
        (name, (start, end))
        for name, (start, end) in calls
        if first <= end <= last and name.startswith(_BY_RUN)
    ]


def _call(line: Mapping[str, Any]) -> tuple[str, Interval]:
    end = moment(line)
    return str(line["call"]), (end - float(line["ms"]) / 1000, end)


def moment(line: Mapping[str, Any]) -> float:
    """Return when a line was logged."""
    return datetime.fromisoformat(str(line["timestamp"])).timestamp()


def logged(agent: AgentProcess, event: str) -> dict[str, Any]:
    """Return the last line of that event."""
    lines = [line for line in agent.log_lines() if line.get("event") == event]
    if not lines:
        raise BenchError(f"{agent.name} never said {event}")
    return lines[-1]
