"""The new configuration while it is made: settings, the reasons beside them, and what the owner must look at.

Owns reading the old values with their kinds, and the order of importance. Must not know any key of either node.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from node_agent.config.document import Loc
from node_agent.config.faults import path_text
from node_agent.config.vantage6.keys import ROW_OF, key_text
from node_agent.config.vantage6.oldfile import OldFile


class Weight(StrEnum):
    """How much something matters, the most first."""

    MUST = "must"
    """The agent does not start before this is corrected."""
    DECIDE = "decide"
    """The owner has to say what is wanted; until then less is allowed than before."""
    LOST = "lost"
    """A feature that is not here."""
    CHANGED = "changed"
    """It works, but not as before."""
    NOTE = "note"
    """Good to know."""


RANK = {weight: rank for rank, weight in enumerate(Weight)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing the owner should know."""

    weight: Weight
    old: str
    """Where it stands in the old file; empty when it is missing there."""
    here: str
    """The setting here; empty when there is none."""
    text: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.old or self.here}: {self.text}"


@dataclass(frozen=True, slots=True)
class Hidden:
    """A value that may hold a secret: never shown, only written."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A secret that moves into a file of its own."""

    text: str = field(repr=False)
    file: str


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment beside a setting; *lines* are settings, ready to be made real."""

    here: Loc
    text: str
    lines: tuple[str, ...] = ()


Value = str | int | float | bool | tuple[()] | Hidden | OwnFile


@dataclass(slots=True)
class Draft:
    """What is known so far."""

    name: str
    old: OldFile
    folder: Path
    """Where secrets get their files."""
    values: dict[Loc, Value] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    # --- what the old file says ----------------------------------------------------------------------------

    def text(self, *loc: int | str) -> str | None:
        """Give a text; a number or a truth value is taken as it is written."""
        value = self.old.at(*loc)
        if value is None:
            return None
        if isinstance(value, dict | list):
            self._wrong_kind(loc, "one value")
            return None
        return value if isinstance(value, str) else self.old.written(*loc) or str(value)

    def truth(self, *loc: int | str) -> bool | None:
        """Give a truth value."""
        value = self.old.at(*loc)
        if value is None or isinstance(value, bool):
            return value
        self._wrong_kind(loc, "true or false")
        return None

    def entries(self, *loc: int | str) -> Mapping[str, Any]:
        """Give the entries of a block."""
        value = self.old.at(*loc)
        if isinstance(value, dict):
            return value
        if value is not None:
            self._wrong_kind(loc, "a block of settings")
        return {}

    def items(self, *loc: int | str) -> list[Any]:
        """Give the items of a list; one text counts as a list of one."""
        value = self.old.at(*loc)
        if isinstance(value, list):
            return value
        if isinstance(value, str):
            return [value]
        if value is not None:
            self._wrong_kind(loc, "a list")
        return []

    def texts(self, *loc: int | str) -> Iterator[tuple[Loc, str]]:
        """Give the texts of a list with their places; what is no text is reported."""
        for place in places(loc, self.items(*loc)):
            # one text stands for a list of one
            text = self.text(*(place if isinstance(self.old.at(*loc), list) else loc))
            if text:
                yield place, text

    def blocks(self, *loc: int | str) -> Iterator[Loc]:
        """Give the places of the blocks of a list; what is no block is reported."""
        for place, item in zip(places(loc, self.items(*loc)), self.items(*loc), strict=True):
            if isinstance(item, dict):
                yield place
            else:
                self._wrong_kind(place, "a block of settings")

    def _wrong_kind(self, loc: Loc, kind: str) -> None:
        self.say(Weight.MUST, loc, f"is not {kind}; it is left out")

    # --- what is said here ---------------------------------------------------------------------------------

    def put(self, here: Loc, value: Value) -> None:
        """Set one value of the new configuration."""
        self.values[here] = value

    def say(self, weight: Weight, old: Loc, text: str, *, here: Loc = ()) -> None:
        """Report something; it stands as a comment beside *here*, too."""
        where = path_text(old)
        self.findings.append(
            Finding(weight=weight, old=where, here=path_text(here), text=text, line=self.old.line(*old))
        )
        self.remarks.append(Remark(here, f"{where}: {text}" if where else text))

    def say_of_many(self, weight: Weight, olds: Sequence[Loc], text: str) -> None:
        """Report the same of several keys that have no place here."""
        for old in olds:
            self.findings.append(
                Finding(weight=weight, old=path_text(old), here="", text=text, line=self.old.line(*old))
            )
        self.remarks.append(Remark((), f"{', '.join(map(path_text, olds))}: {text}"))

    def row(self, weight: Weight, old: Loc, *, here: Loc = ()) -> None:
        """Report what the table says about a key."""
        row = ROW_OF[key_text(old)]
        self.say(weight, old, row.text, here=here)

    def remark(self, here: Loc, text: str, *lines: str) -> None:
        """Put a comment beside a setting."""
        self.remarks.append(Remark(here, text, lines))

    def count(self, *here: int | str) -> int:
        """Count the entries of a list so far: the index of the next one."""
        size = len(here)
        return len({loc[size] for loc in self.values if loc[:size] == here and len(loc) > size})


def places(loc: Loc, items: Iterable[Any]) -> list[Loc]:
    """Give the places of a list's items."""
    return [(*loc, index) for index, _ in enumerate(items)]
