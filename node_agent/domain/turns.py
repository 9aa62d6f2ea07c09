"""Whose run begins next, and why the others wait; in pure code.

Rules of this file:
1. A run works from its admission until its container has ended. A run that created subtasks is a parent instead: it
   takes no slot any more.
2. A first run (one that a user asked for) needs a slot, and memory beside everything that is in flight, parents included.
   A subtask needs a slot, and memory beside what works: parents wait for it, so they cannot be in its way. Whatever works
   ends by itself or becomes a parent, so every subtask gets its turn, and then every parent ends.
3. Subtasks go first, the deepest first, since somebody waits for them. After some of them in a row a first run goes.
4. Between researchers: whose fewest runs work, then whose last turn ended longest ago. Within one: the oldest run.
Whatever the bounds are, a run that would be alone fits.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from node_agent.domain.run import Run, RunId, State
from node_agent.domain.task import TaskId

SUBTASKS_IN_A_ROW = 20
"""After so many turns of subtasks a first run has its turn, so that no task with endless subtasks keeps others out."""
PARENTS_PER_SLOT = 8
"""With so many parents for each slot first runs wait too: parents are containers all the same."""
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
    pull_time: float = 3600.0
    start_time: float = 300.0


class Kind(StrEnum):
    """What a run that waits is."""

    SUBTASK = "subtask"
    FIRST = "first"


def kind_of(run: Run) -> Kind:
    """Tell a subtask from a run that a user asked for."""
    return Kind.FIRST if run.task.parent_id is None else Kind.SUBTASK


Line = tuple[Kind, Researcher]
"""Where a run waits: behind the others of its kind and its researcher."""


def line_of(run: Run) -> Line:
    """Say where a run waits."""
    return kind_of(run), run.task.init_user_id or run.task.init_user_name


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


def hindrance(kind: Kind, load: Load, bounds: Bounds) -> Hindrance | None:
    """Say why a run of this kind may not begin beside *load*; None when it may."""
    if load.working >= bounds.slots:
        text = f"all {bounds.slots} slots are taken (limits.concurrent_runs)"
        return Hindrance(
            Cause.SLOTS, text if bounds.slots > 1 else "the one slot is taken (limits.concurrent_runs)"
        )
    beside = load.working if kind is Kind.SUBTASK else load.working + load.parents
    if bounds.total_memory is not None and beside and (beside + 1) * bounds.run_memory > bounds.total_memory:
        return Hindrance(
            Cause.MEMORY,
            f"{beside} in flight may use {_gib(beside * bounds.run_memory)} of the {_gib(bounds.total_memory)} of memory "
            f"for runs, and another needs {_gib(bounds.run_memory)} (limits.memory, limits.total_memory)",
        )
    if kind is Kind.FIRST and load.parents >= PARENTS_PER_SLOT * bounds.slots:
        return Hindrance(
            Cause.PARENTS, f"{load.parents} runs wait for their subtasks already; those go first"
        )
    return None


def _gib(size: int) -> str:
    return f"{size / _GIB:.3g} GiB"


def works(run: Run, *, beginning: Collection[RunId]) -> bool:
    """Tell whether the run holds a slot; the admission of those *beginning* is under way."""
    if run.state is State.RECEIVED:
        return run.id in beginning
    return run.state <= State.RUNNING and not run.has_subtasks


def load_of(runs: Iterable[Run], *, beginning: Collection[RunId]) -> Load:
    """Count what is in flight."""
    working = parents = 0
    for run in runs:
        if run.state is State.RECEIVED:
            working += run.id in beginning
        elif run.state <= State.RUNNING:
            working += not run.has_subtasks
            parents += run.has_subtasks
    return Load(working, parents)


# --- the order ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the researchers stand when turns are dealt out."""

    working: Mapping[Researcher, int] = field(default_factory=dict)
    """How many runs of each hold a slot."""
    since: Mapping[Line, int] = field(default_factory=dict)
    """When each began to wait, or had its last turn; counted up, so that smaller is longer ago."""
    depth: Mapping[TaskId, int] = field(default_factory=dict)
    """How many tasks stand above a task, as far as they are in flight here."""
    in_a_row: int = 0
    """How many subtasks had the last turns."""


def depths(runs: Iterable[Run]) -> dict[TaskId, int]:
    """Say how many tasks in flight here stand above each task."""
    parent_of = {
        run.task.id: run.task.parent_id for run in runs if run.has_subtasks or run.task.parent_id is not None
    }
    return {task: _depth(task, parent_of) for task in parent_of}


def _depth(task: TaskId, parent_of: Mapping[TaskId, TaskId | None]) -> int:
    depth, seen, above = 0, {task}, parent_of.get(task)
    # a server that says a task stands above itself must not hold us up
    while above is not None and above in parent_of and above not in seen:
        seen.add(above)
        depth, above = depth + 1, parent_of[above]
    return depth


class Rotation:
    """Deals turns out to the runs that wait, one after the other."""

    def __init__(self, waiting: Iterable[Run], standing: Standing) -> None:
        self._working = {kind: Counter(standing.working) for kind in Kind}
        self._since = dict(standing.since)
        self._in_a_row = standing.in_a_row
        self._next = max(standing.since.values(), default=0) + 1
        self._lines: dict[Kind, dict[Researcher, list[Run]]] = {kind: defaultdict(list) for kind in Kind}
        # the next one of each line stands at its end
        for run in sorted(waiting, key=lambda run: (standing.depth.get(run.task.id, 0), -run.id)):
            kind, who = line_of(run)
            self._lines[kind][who].append(run)

    def take(self, kinds: Collection[Kind] = tuple(Kind)) -> Run | None:
        """Give the run whose turn it is among these *kinds*; None when none of them waits."""
        kind = self._choose(kinds)
        if kind is None:
            return None
        lines = self._lines[kind]
        who = min(lines, key=lambda who: self._rank(kind, who))
        run = lines[who].pop()
        if not lines[who]:
            del lines[who]
        self._working[kind][who] += 1
        self._since[kind, who] = self._next
        self._next += 1
        self._in_a_row = self._in_a_row + 1 if kind is Kind.SUBTASK else 0
        return run

    def _rank(self, kind: Kind, who: Researcher) -> tuple[int, int, int]:
        return self._working[kind][who], self._since.get((kind, who), 0), self._lines[kind][who][-1].id

    def _choose(self, kinds: Collection[Kind]) -> Kind | None:
        usual = (Kind.SUBTASK, Kind.FIRST)
        order = usual if self._in_a_row < SUBTASKS_IN_A_ROW else reversed(usual)
        return next((kind for kind in order if kind in kinds and self._lines[kind]), None)


def in_turn(waiting: Iterable[Run], standing: Standing) -> Iterator[Run]:
    """Give the runs that wait in the order of their turns, if nothing new came."""
    rotation = Rotation(waiting, standing)
    while (run := rotation.take()) is not None:
        yield run


def admitted(waiting: Iterable[Run], standing: Standing, load: Load, bounds: Bounds) -> Iterator[Run]:
    """Give the runs that may begin now, in order."""
    rotation = Rotation(waiting, standing)
    while True:
        run = rotation.take([kind for kind in Kind if hindrance(kind, load, bounds) is None])
        if run is None:
            return
        load = replace(load, working=load.working + 1)
        yield run
