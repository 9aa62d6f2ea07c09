"""Moments on the machine's steady clock: nobody can set it, and every process reads the same until the machine starts anew.

What must last for so many seconds is measured with these, never with the time of day: a clock that is set by a day, by a
person or a time server, ends nothing early and nothing late. Knows no run.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """One moment; *boot* names the machine's start it is counted from."""

    boot: str
    at: float

    def __str__(self) -> str:
        return f"{self.at:.3f}@{self.boot}"

    @classmethod
    def parse(cls, text: str) -> "Mark | None":
        """Read what `str` wrote; None when it is something else."""
        at, _, boot = text.partition("@")
        try:
            return cls(boot, float(at)) if boot else None
        except ValueError:
            return None


def seconds_since(mark: Mark | None, *, now: Mark) -> float:
    """Say how long ago *mark* was; 0 when nobody can know, because the machine started anew since."""
    if mark is None or mark.boot != now.boot:
        return 0.0
    return max(0.0, now.at - mark.at)
