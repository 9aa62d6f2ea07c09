"""What the control loop does by the clock; times are monotonic seconds."""

from collections.abc import Callable, Mapping

Action = Callable[[], None]


class Timetable:
    """Actions and when each is next."""

    def __init__(self, intervals: Mapping[Action, float], *, start: float) -> None:
        self._intervals = dict(intervals)
        self._next_at = {action: start + interval for action, interval in intervals.items()}

    def next_at(self) -> float:
        """Say when the next action is due."""
        return min(self._next_at.values())

    def run_due(self, now: float) -> None:
        """Do what is due, once each, however late it is."""
        for action, at in list(self._next_at.items()):
            if at <= now:
                self._next_at[action] = now + self._intervals[action]
                action()

    def hasten(self, action: Action, *, to: float) -> None:
        """Do *action* at *to* if it were to be later."""
        self._next_at[action] = min(self._next_at[action], to)

    def put_off(self, action: Action, *, to: float) -> None:
        """Do *action* at *to* if it were to be earlier."""
        self._next_at[action] = max(self._next_at[action], to)
