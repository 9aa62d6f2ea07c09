"""Who ended a container that did not end well, found in the engine's own events.

Owns what an engine's memory of a container proves. Must not know runs or what becomes of the answer. An engine keeps its
last events only, and loses all of them when it is restarted.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from node_agent.domain.container import ContainerReport, EndedBy

KILL_SECONDS = 60
"""A killed process may take so long to end."""
LATE_EVENT_SECONDS = 1.0
REMEMBERED = 200
"""An engine that shows fewer events than this has forgotten none since its start; it keeps somewhat more."""

_KILLED = 137
_SIGNALLED = frozenset({_KILLED, 143})
_ENDED_WITH_ENGINE = _SIGNALLED | {255}
"""Exit codes of what the engine killed or asked to end when it was stopped, or did not find again afterwards."""

AskEvents = Callable[[Mapping[str, str]], bytes]
"""Asks the engine for events with these parameters; without an end it is this moment, else the end is waited for."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the engine remembers."""

    action: str
    at: float


def with_its_end(report: ContainerReport, ask: AskEvents, *, replays: Callable[[], bool]) -> ContainerReport:
    """Add to the report of a container that ended badly who ended it, as far as the engine remembers.

    *replays* tells whether this engine shows old events at all.
    """
    if not report.exit_code or report.out_of_memory or report.finished_at is None:
        return report
    actions = _actions_of(report, ask)
    if "oom" in actions:
        return replace(report, out_of_memory=True)
    if "kill" in actions:
        return replace(report, ended_by=EndedBy.SOMEBODY)
    if "die" in actions:
        # No process inside can kill its own first process, so somebody outside did. If it was not the engine, of which
        # there would be an event, it was the kernel: on cgroup v1 the engine may never learn why.
        return replace(report, out_of_memory=report.exit_code == _KILLED)
    if report.exit_code in _ENDED_WITH_ENGINE and replays() and _would_remember(report.finished_at, ask):
        return replace(report, ended_by=EndedBy.ENGINE)
    return report


def _actions_of(report: ContainerReport, ask: AskEvents) -> frozenset[str]:
    finished_at = report.finished_at or 0.0
    asked = {
        "since": str(int(finished_at) - KILL_SECONDS),
        "filters": json.dumps({"container": [report.id]}),
    }
    if report.exit_code in _SIGNALLED:
        # The engine notes who asked, and what the kernel did, after the fact.
        asked["until"] = f"{finished_at + LATE_EVENT_SECONDS:.3f}"
    return frozenset(event.action for event in events_in(ask(asked)))


def _would_remember(moment: float, ask: AskEvents) -> bool:
    """Tell whether the engine would remember what happened at *moment*, had it been there."""
    events = events_in(ask({"since": "1"}))
    return len(events) < REMEMBERED or events[0].at < moment


def events_in(answer: bytes) -> list[Event]:
    """Read the engine's lines, oldest first; what cannot be read is left out."""
    found = (_event(line) for line in answer.splitlines())
    return [event for event in found if event is not None]


def _event(line: bytes) -> Event | None:
    try:
        said = json.loads(line)
        return Event(action=str(said["Action"]), at=float(said["timeNano"]) / 1e9)
    except (ValueError, KeyError, TypeError):
        return None
