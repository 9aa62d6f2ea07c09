"""Decide which waiting run begins next, and why the others wait; pure code.

Rules of this file:
1. A run works from its admission until its container has ended, and takes a slot. A run that created subtasks is a parent.
   A parent works too, unless the engine has shown that it uses next to no CPU: then it waits, and its slot is free.
2. Every run, a first run (one that a user asked for) or a subtask, needs a free slot and memory beside everything in
   flight, waiting parents included. Beyond a number of waiting parents nothing begins either.
3. Rule 2 alone would stop nested tasks: parents would hold the memory that their subtasks need. So when nothing works, one
   run may begin beyond memory and the number of parents. That is a subtask of the run that its researcher began last
   here, or one whose parent runs on another node. Only when everything in flight belongs to one researcher it may also be
   a first run of another, who has nothing here yet. Tasks nested deeper than MAX_NESTING are refused, and subtasks of
   other nodes' tasks begin beyond the bounds only while their researcher has less than MAX_NESTING runs too many, so the
   excess has an end.
4. Subtasks go first, the deepest first, since somebody waits for them. After some of them in a row a first run goes.
5. A researcher with as many runs in flight as a share (Bounds.share, all slots by default) loses that precedence: while a
   first run of another researcher waits, the one who began to wait, or had the last turn, longest ago is next. One
   researcher alone can still use every slot.
6. Between researchers: the fewest runs at work (for first runs: in flight), then the last turn that ended longest ago.
   Within one: the oldest run.
A run that would be alone always fits.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heapreplace
from math import inf
from operator import itemgetter
from typing import Protocol

from node_agent.domain.run import Run, RunId, State
from node_agent.domain.task import Task, TaskId

SUBTASKS_IN_A_ROW = 20
"""After so many turns of subtasks a first run has its turn, so that no task with endless subtasks keeps others out."""
PARENTS_PER_SLOT = 8
"""Waiting parents for each slot beyond which nothing begins: parents are containers all the same."""
MAX_NESTING = 8
"""Levels of subtasks below a task in flight here; also the most subtasks of other nodes' tasks beyond the bounds."""
_GIB = 2**30

Researcher = int | str | None
"""Who asked: the number of the user, which subtasks share with the task they belong to, or a consumer's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What all runs together may take, and how long each may take to begin; sizes in bytes, times in seconds."""

    slots: int
    run_memory: int = 0
    total_memory: int | None = None
    """None: memory is not looked at."""
    runs_per_person: int | None = None
    """Runs in flight from which on a researcher yields to others; None: as many as there are slots."""
    pull_time: float = 3600.0
    start_time: float = 300.0
    run_time: float = inf

    @property
    def share(self) -> int:
        """Return from how many runs in flight on a researcher yields to others who wait."""
        return self.slots if self.runs_per_person is None else self.runs_per_person

    @property
    def fitting(self) -> int:
        """Return how many runs may be in flight, working or waiting for their subtasks."""
        parents = PARENTS_PER_SLOT * self.slots
        if self.total_memory is None or not self.run_memory:
            return parents
        return max(1, min(parents, self.total_memory // self.run_memory))


class Kind(StrEnum):
    """What a run that waits is."""

    SUBTASK = "subtask"
    FIRST = "first"


def kind_of(run: Run) -> Kind:
    """Tell a subtask from a run that a user asked for."""
    return Kind.FIRST if run.task.parent_id is None else Kind.SUBTASK


Line = tuple[Kind, Researcher]
"""Where a run waits: behind the others of its kind and its researcher."""


class _Asked(Protocol):
    @property
    def task(self) -> Task:
        """The task that the run belongs to."""


def researcher_of(run: _Asked) -> Researcher:
    """Return who asked for the run."""
    return run.task.init_user_id or run.task.init_user_name


def line_of(run: Run) -> Line:
    """Return where a run waits."""
    return kind_of(run), researcher_of(run)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A run in its line; the greatest place of a line is next: the deepest, then the oldest."""

    depth: int
    """How many tasks in flight here stand above the run's task."""
    newness: int
    """The run's number, negated."""
    above: TaskId | None = field(default=None, compare=False)
    """The task that asked for this one; None when that is not in flight here."""

    @property
    def run_id(self) -> RunId:
        """Return which run it is."""
        return RunId(-self.newness)


class Cause(StrEnum):
    """What a run waits for."""

    DRAIN = "drain"
    ENGINE = "engine"
    DISK = "disk"
    SLOTS = "slots"
    MEMORY = "memory"
    PARENTS = "parents"


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why a run waits, in words for people."""

    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class Load:
    """What is in flight."""

    working: int = 0
    """Runs that hold a slot."""
    parents: int = 0
    """Runs that wait for their subtasks."""
    held: Mapping[Researcher, int] = field(default_factory=dict)
    """How many of both each researcher has."""
    latest: Mapping[Researcher, TaskId] = field(default_factory=dict)
    """The task of the run of each that began last."""

    def with_one_more(self, who: Researcher) -> "Load":
        """Return the load when one more run works."""
        held = {**self.held, who: self.held.get(who, 0) + 1}
        return Load(self.working + 1, self.parents, held, self.latest)


def hindrance(load: Load, bounds: Bounds) -> Hindrance | None:
    """Return why no run may begin beside *load* within the bounds; None when one may."""
    if load.working >= bounds.slots:
        text = f"all {bounds.slots} slots are taken (limits.concurrent_runs)"
        return Hindrance(
            Cause.SLOTS, text if bounds.slots > 1 else "the one slot is taken (limits.concurrent_runs)"
        )
    beside = load.working + load.parents
    if bounds.total_memory is not None and beside and (beside + 1) * bounds.run_memory > bounds.total_memory:
        return Hindrance(
            Cause.MEMORY,
            f"{beside} in flight{_waiting_parents(load)} may use {_gib(beside * bounds.run_memory)} of the "
            f"{_gib(bounds.total_memory)} of memory for runs, and another needs {_gib(bounds.run_memory)} "
            "(limits.memory, limits.total_memory)",
        )
    if load.parents >= PARENTS_PER_SLOT * bounds.slots:
        return Hindrance(Cause.PARENTS, f"{load.parents} runs wait for their subtasks, which is the most")
    return None


def _waiting_parents(load: Load) -> str:
    return f" ({load.parents} wait for their subtasks)" if load.parents else ""


def may_exceed(kind: Kind, who: Researcher, place: Place, load: Load, bounds: Bounds) -> bool:
    """Check whether a run may begin beyond memory and the number of parents (rule 3)."""
    if load.working:
        return False
    held = load.held.get(who, 0)
    if kind is Kind.FIRST:
        return not held and len(load.held) == 1
    if place.above is None:
        return held < bounds.fitting + MAX_NESTING
    # of the run that began last: otherwise the many subtasks of one parent could begin one beside the other
    return place.above == load.latest.get(who) and place.depth <= MAX_NESTING


def _gib(size: int) -> str:
    return f"{size / _GIB:.3g} GiB"


def works(run: Run, *, beginning: Collection[RunId], idle: Collection[RunId]) -> bool:
    """Check whether the run holds a slot; *beginning*: being admitted; *idle*: use no CPU."""
    if run.state is State.RECEIVED:
        return run.id in beginning
    return run.state <= State.RUNNING and not waits_for_subtasks(run, idle=idle)


def waits_for_subtasks(run: Run, *, idle: Collection[RunId]) -> bool:
    """Check whether the run is a parent that lends its slot."""
    return State.RECEIVED < run.state <= State.RUNNING and run.has_subtasks and run.id in idle


def load_of(
    runs: Iterable[Run],
    *,
    beginning: Collection[RunId],
    idle: Collection[RunId],
) -> Load:
    """Count what is in flight; *runs* are in the order in which they began."""
    working = parents = 0
    held: Counter[Researcher] = Counter()
    latest: dict[Researcher, TaskId] = {}
    for run in runs:
        is_parent = waits_for_subtasks(run, idle=idle)
        if not is_parent and not works(run, beginning=beginning, idle=idle):
            continue
        who = researcher_of(run)
        held[who] += 1
        latest[who] = run.task.id
        parents += is_parent
        working += not is_parent
    return Load(working, parents, held, latest)


# --- the order ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the researchers stand when turns are dealt out."""

    working: Mapping[Researcher, int] = field(default_factory=dict)
    """How many runs of each hold a slot."""
    held: Mapping[Researcher, int] = field(default_factory=dict)
    """How many runs of each are in flight, waiting parents included."""
    since: Mapping[Line, int] = field(default_factory=dict)
    """When each began to wait, or had its last turn; counted up, so that smaller is longer ago."""
    in_a_row: int = 0
    """How many subtasks had the last turns."""
    share: int = 1_000_000
    """From how many runs in flight on the subtasks of a researcher have no precedence."""


def place_of(run: Run, depth: int | None) -> Place:
    """Return the place of a run in its line; *depth* is None for a subtask of a task that is not in flight here."""
    return Place(depth or 0, -run.id, None if depth is None else run.task.parent_id)


Lines = Mapping[Line, list[Place]]
"""Who waits: the places of each line in growing order."""


def lines_of(waiting: Iterable[Run], depth: Mapping[RunId, int] | None = None) -> dict[Line, list[Place]]:
    """Return the lines in which these runs wait."""
    lines: dict[Line, list[Place]] = {}
    for run in waiting:
        insort(lines.setdefault(line_of(run), []), place_of(run, (depth or {}).get(run.id, 0)))
    return lines


_Rank = tuple[int, int, int, Researcher]
"""Runs of the line's researcher at work, its last turn, its next run (so that no two are equal), the researcher."""
Eligible = Callable[[Kind, Researcher, Place], bool]


class Rotation:
    """Deals turns out to the runs that wait, one after the other; the lines themselves are left as they are."""

    def __init__(self, lines: Lines, standing: Standing) -> None:
        held = Counter(standing.held or standing.working)
        self._busy = {Kind.SUBTASK: Counter(standing.working), Kind.FIRST: Counter(held)}
        self._held = held
        self._share = standing.share
        self._since = dict(standing.since)
        self._in_a_row = standing.in_a_row
        self._next = max(standing.since.values(), default=0) + 1
        self._lines: dict[Kind, dict[Researcher, list[Place]]] = {kind: {} for kind in Kind}
        for (kind, who), places in lines.items():
            self._lines[kind][who] = list(places)
        self._ranked = {kind: [self._rank(kind, who) for who in self._lines[kind]] for kind in Kind}
        for ranked in self._ranked.values():
            heapify(ranked)

    def take(self, eligible: Eligible | None = None) -> tuple[Kind, Researcher, Place] | None:
        """Return the place whose turn it is among those *eligible*; None when none of them waits."""
        best = {kind: self._best(kind, eligible) for kind in Kind}
        kind = self._choose(best)
        found = None if kind is None else best[kind]
        if kind is None or found is None:
            return None
        who, place = found
        self._drop(kind, who, place)
        self._busy[kind][who] += 1
        self._held[who] += 1
        self._since[kind, who] = self._next
        self._next += 1
        self._rerank(kind, who)
        self._in_a_row = self._in_a_row + 1 if kind is Kind.SUBTASK else 0
        return kind, who, place

    def _drop(self, kind: Kind, who: Researcher, place: Place) -> None:
        places = self._lines[kind][who]
        if places[-1] is place:
            places.pop()
        else:
            places.remove(place)
        if not places:
            del self._lines[kind][who]

    def _rank(self, kind: Kind, who: Researcher) -> _Rank:
        return self._busy[kind][who], self._since.get((kind, who), 0), self._lines[kind][who][-1].run_id, who

    def _rerank(self, kind: Kind, who: Researcher) -> None:
        """Rank a line anew after its turn; no other line's rank has changed."""
        ranked = self._ranked[kind]
        if ranked[0][3] != who:
            ranked[:] = [self._rank(kind, each) for each in self._lines[kind]]
            heapify(ranked)
        elif who in self._lines[kind]:
            heapreplace(ranked, self._rank(kind, who))
        else:
            heappop(ranked)

    def _best(self, kind: Kind, eligible: Eligible | None) -> tuple[Researcher, Place] | None:
        ranked = self._ranked[kind]
        if eligible is None:
            return (ranked[0][3], self._lines[kind][ranked[0][3]][-1]) if ranked else None
        for _, _, _, who in sorted(ranked, key=itemgetter(0, 1, 2)):
            for place in reversed(self._lines[kind][who]):
                if eligible(kind, who, place):
                    return who, place
        return None

    def _choose(self, best: Mapping[Kind, tuple[Researcher, Place] | None]) -> Kind | None:
        subtask, first = best[Kind.SUBTASK], best[Kind.FIRST]
        if subtask is None or first is None:
            return next((kind for kind in Kind if best[kind] is not None), None)
        yields = self._in_a_row >= SUBTASKS_IN_A_ROW or self._has_had_its_share(subtask[0], first[0])
        return Kind.FIRST if yields else Kind.SUBTASK

    def _has_had_its_share(self, who: Researcher, other: Researcher) -> bool:
        """Check whether subtasks of *who* yield to a first run of *other* (rule 5)."""
        if who == other or self._held[who] < self._share:
            return False
        return self._since.get((Kind.FIRST, other), 0) < self._since.get((Kind.SUBTASK, who), 0)


def in_turn(lines: Lines, standing: Standing) -> Iterator[RunId]:
    """Return the runs that wait in the order of their turns, if nothing new came."""
    rotation = Rotation(lines, standing)
    while (taken := rotation.take()) is not None:
        yield taken[2].run_id


def admitted(lines: Lines, standing: Standing, load: Load, bounds: Bounds) -> Iterator[RunId]:
    """Return the runs that may begin now, in order."""
    rotation = Rotation(lines, standing)
    while (eligible := _who_may_begin(load, bounds)) is not None:
        taken = rotation.take(eligible if eligible is not _everybody else None)
        if taken is None:
            return
        _, who, place = taken
        load = load.with_one_more(who)
        yield place.run_id


def _everybody(_kind: Kind, _who: Researcher, _place: Place) -> bool:
    return True


def _who_may_begin(load: Load, bounds: Bounds) -> Eligible | None:
    """Return the condition on whoever begins next; None when nobody may."""
    why = hindrance(load, bounds)
    if why is None:
        return _everybody
    if load.working:
        return None
    return lambda kind, who, place: may_exceed(kind, who, place, load, bounds)


# --- depth ----------------------------------------------------------------------------------------------------


def depth_of(run: Run, parent_of: Callable[[TaskId], Run | None]) -> int | None:
    """Return how many tasks in flight here stand above the run's task; None for a subtask of a task that is not here.

    *parent_of* finds a run of a task. A server that claims that a task stands above itself ends the count.
    """
    above = run.task.parent_id
    if above is None:
        return 0
    depth, seen = 0, {run.task.id}
    while above is not None and above not in seen and (found := parent_of(above)) is not None:
        seen.add(above)
        depth, above = depth + 1, found.task.parent_id
    return depth or None
