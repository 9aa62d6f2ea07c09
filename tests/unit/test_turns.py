"""Whose run begins next: nobody starves, nothing stands still, and whoever waits is told why."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.domain.run import Run, RunId, State
from node_agent.domain.task import TaskId
from node_agent.domain.turns import (
    MAX_NESTING,
    PARENTS_PER_SLOT,
    SUBTASKS_IN_A_ROW,
    Bounds,
    Cause,
    Kind,
    Load,
    Place,
    Standing,
    admitted,
    depth_of,
    hindrance,
    in_turn,
    kind_of,
    lines_of,
    load_of,
    may_exceed,
)
from node_agent.runtable import RunTable
from node_agent.waiting import WaitingRoom
from tests.doubles.core import make_run, make_task

GIB = 2**30


def run_of(number: int, *, user: int | None = 1, parent: int | None = None, **changes: Any) -> Run:
    above = None if parent is None else TaskId(parent)
    return make_run(number, task=make_task(number, init_user_id=user, parent_id=above), **changes)


def working(number: int, **changes: Any) -> Run:
    return run_of(number, state=State.RUNNING, **changes)


def parent(number: int, **changes: Any) -> Run:
    return working(number, has_subtasks=True, **changes)


def order(*waiting: Run, **standing: Any) -> list[int]:
    known = standing.pop("among", ())
    depth = depths([*waiting, *known])
    return list(in_turn(lines_of(waiting, depth), Standing(**standing)))


def depths(runs: list[Run]) -> dict[RunId, int]:
    of_task = {run.task.id: run for run in runs}
    return {run.id: depth_of(run, of_task.get) or 0 for run in runs}


def first_admitted(waiting: list[Run], standing: Standing, load: Load, bounds: Bounds) -> list[int]:
    return list(admitted(lines_of(waiting), standing, load, bounds))


# --- the order ------------------------------------------------------------------------------------------------


def test_the_oldest_run_of_a_researcher_is_first() -> None:
    assert order(run_of(3), run_of(1), run_of(2)) == [1, 2, 3]


def test_one_run_does_not_wait_for_the_five_hundred_of_another_researcher() -> None:
    many = [run_of(number) for number in range(1, 501)]
    assert order(*many, run_of(501, user=2)).index(501) == 1
    assert order(*many, run_of(501, user=2), since={(Kind.FIRST, 1): 5, (Kind.FIRST, 2): 4})[0] == 501
    assert order(*many, run_of(501, user=2), working={1: 1})[0] == 501


def test_researchers_take_turns() -> None:
    waiting = [run_of(number, user=number // 10) for number in (10, 11, 12, 20, 21, 30)]
    assert order(*waiting) == [10, 20, 30, 11, 21, 12]


def test_consumers_of_the_compute_api_take_turns_by_their_addresses() -> None:
    asked = {10: "0xaa", 11: "0xaa", 12: "0xaa", 20: "0xbb", 21: "0xbb"}
    waiting = [
        make_run(number, task=make_task(number, init_user_id=None, init_user_name=address))
        for number, address in asked.items()
    ]
    assert order(*waiting) == [10, 20, 11, 21, 12]
    assert order(*waiting, working={"0xaa": 1})[0] == 20
    assert order(*waiting, since={(Kind.FIRST, "0xaa"): 5, (Kind.FIRST, "0xbb"): 4})[0] == 20


def test_a_subtask_goes_before_the_runs_that_users_asked_for() -> None:
    assert order(run_of(1), run_of(2, user=2), run_of(9, user=3, parent=4)) == [9, 1, 2]


def test_the_deepest_subtasks_go_first() -> None:
    runs = [parent(1), parent(2, parent=1), run_of(3, parent=1), run_of(4, parent=2)]
    assert order(runs[2], runs[3], among=runs[:2]) == [4, 3]


def test_a_server_that_says_that_tasks_stand_above_each_other_in_a_circle_holds_nothing_up() -> None:
    runs = [run_of(1, parent=2), run_of(2, parent=1), run_of(3, parent=3)]
    assert sorted(order(*runs)) == [1, 2, 3]


def test_endless_subtasks_let_a_first_run_pass_now_and_then() -> None:
    subtasks = [run_of(number, parent=7) for number in range(100, 300)]
    assert order(*subtasks, run_of(500, user=2)).index(500) == SUBTASKS_IN_A_ROW
    assert order(*subtasks, run_of(500, user=2), in_a_row=SUBTASKS_IN_A_ROW)[0] == 500


@pytest.mark.parametrize("seed", range(20))
def test_everybody_who_waits_has_exactly_one_turn_and_nobody_is_passed_over(seed: int) -> None:
    chance = random.Random(seed)
    users = range(chance.randint(1, 6))
    waiting = [
        run_of(number, user=chance.choice(users), parent=chance.choice([None, None, 5]))
        for number in chance.sample(range(1000, 9000), chance.randint(1, 120))
    ]
    since = {(kind, user): chance.randint(0, 50) for user in users for kind in Kind}
    standing = Standing(since=since, in_a_row=chance.randint(0, 40))
    by_number = {run.id: run for run in waiting}
    turns = [by_number[run_id] for run_id in in_turn(lines_of(waiting), standing)]
    assert Counter(turns) == Counter(waiting)
    for user in users:
        first = [run for run in turns if run.task.init_user_id == user and kind_of(run) is Kind.FIRST]
        assert first == sorted(first, key=lambda run: run.id)
        if first:
            passed = [run for run in turns[: turns.index(first[0])] if kind_of(run) is Kind.FIRST]
            assert Counter(run.task.init_user_id for run in passed).most_common(1) <= [(len(users), 1)]
            assert len(passed) < len(users)
            assert turns.index(first[0]) <= (len(passed) + 1) * SUBTASKS_IN_A_ROW + len(passed)


# --- what a run waits for -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "bounds", "cause"),
    [
        (Load(1), Bounds(slots=2), None),
        (Load(2), Bounds(slots=2), Cause.SLOTS),
        (Load(1), Bounds(slots=9, run_memory=4, total_memory=8), None),
        (Load(2), Bounds(slots=9, run_memory=4, total_memory=8), Cause.MEMORY),
        (Load(1, parents=1), Bounds(slots=9, run_memory=4, total_memory=8), Cause.MEMORY),
        (Load(0, parents=2), Bounds(slots=9, run_memory=4, total_memory=8), Cause.MEMORY),
        (Load(0, parents=PARENTS_PER_SLOT), Bounds(slots=1), Cause.PARENTS),
        (Load(), Bounds(slots=1, run_memory=9, total_memory=4), None),
    ],
)
def test_a_run_waits_for_what_is_short(load: Load, bounds: Bounds, cause: Cause | None) -> None:
    found = hindrance(load, bounds)
    assert (None if found is None else found.cause) == cause


FULL = Bounds(slots=1, run_memory=4, total_memory=8)


@pytest.mark.parametrize(
    ("kind", "who", "above", "load", "may"),
    [
        (Kind.SUBTASK, 1, 7, Load(0, 2, {1: 2}, {1: TaskId(7)}), True),
        (Kind.SUBTASK, 1, 6, Load(0, 2, {1: 2}, {1: TaskId(7)}), False),
        (Kind.SUBTASK, 1, None, Load(0, 2, {1: 2}, {1: TaskId(7)}), True),
        (Kind.SUBTASK, 1, 7, Load(1, 1, {1: 2}, {1: TaskId(7)}), False),
        (Kind.SUBTASK, 1, 7, Load(0, 10, {1: 2 + MAX_NESTING}, {1: TaskId(7)}), True),
        (Kind.SUBTASK, 1, None, Load(0, 9, {1: 1 + MAX_NESTING}, {1: TaskId(7)}), True),
        (Kind.SUBTASK, 1, None, Load(0, 10, {1: 2 + MAX_NESTING}, {1: TaskId(7)}), False),
        (Kind.FIRST, 2, None, Load(0, 2, {1: 2}), True),
        (Kind.FIRST, 2, None, Load(0, 3, {1: 2, 3: 1}), False),
        (Kind.FIRST, 1, None, Load(0, 2, {1: 2}), False),
        (Kind.FIRST, 2, None, Load(1, 1, {1: 2}), False),
    ],
)
def test_only_what_keeps_nesting_and_others_alive_goes_beyond_the_bounds_and_only_when_nothing_works(
    kind: Kind, who: int, above: int | None, load: Load, may: bool
) -> None:
    place = Place(0, -50, None if above is None else TaskId(above))
    assert may_exceed(kind, who, place, load, FULL) is may


def test_the_reason_names_the_setting_that_decides() -> None:
    bounds = Bounds(slots=4, run_memory=4 * GIB, total_memory=10 * GIB)
    slots = hindrance(Load(4), bounds)
    memory = hindrance(Load(1, parents=1), bounds)
    assert slots is not None
    assert slots.text == "all 4 slots are taken (limits.concurrent_runs)"
    assert memory is not None
    assert "2 in flight (1 wait for their subtasks) may use 8 GiB of the 10 GiB" in memory.text
    assert "limits.total_memory" in memory.text


def test_a_run_works_from_its_admission_until_its_container_has_ended() -> None:
    runs = [run_of(1), run_of(2), working(3), parent(4), run_of(5, state=State.CAPTURED)]
    assert load_of(runs, beginning={RunId(2)}, idle={RunId(4)}) == Load(2, 1, {1: 3}, {1: TaskId(4)})


def test_a_parent_works_unless_it_was_seen_to_use_no_cpu() -> None:
    assert load_of([parent(4)], beginning=(), idle=()) == Load(1, 0, {1: 1}, {1: TaskId(4)})


def test_as_many_are_admitted_as_there_is_room_for() -> None:
    waiting = [run_of(1), run_of(2), run_of(8, parent=3), run_of(9, parent=3)]
    bounds = Bounds(slots=3, run_memory=4, total_memory=12)
    assert first_admitted(waiting, Standing(), Load(0, parents=1), bounds) == [8, 9]
    assert first_admitted(waiting, Standing(), Load(), bounds) == [8, 9, 1]


def test_with_its_share_in_flight_a_researcher_alternates_with_another_who_waits() -> None:
    subtasks = [run_of(number, parent=7) for number in range(10, 14)]
    others = [run_of(number, user=2) for number in range(30, 34)]
    since = {(Kind.SUBTASK, 1): 5, (Kind.FIRST, 2): 4}
    turns = order(*subtasks, *others, held={1: 1}, share=1, since=since)
    assert turns == [30, 10, 31, 11, 32, 12, 33, 13]
    assert order(*subtasks, *others, held={1: 1}, share=2, since=since)[:1] == [10]


# --- the room -------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """One node: what is on it, and who waits there."""

    bounds: Bounds
    runs: RunTable = field(default_factory=RunTable)

    now: float = 0.0

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.runs, self.bounds, lambda: self.now)

    def weigh(self, *, busy: tuple[int, ...] = ()) -> None:
        """Let the engine show that all parents but the *busy* ones use no CPU."""
        for _ in range(2):
            self.now += 1.0
            parents = [run.id for run in self.runs.begun() if run.has_subtasks]
            self.room.weighed({run: self.now * (run in busy) for run in parents}, at=self.now)

    def receive(self, *runs: Run) -> None:
        for run in runs:
            self.runs.keep(run)
            self.room.enter(run)

    def turn(self) -> list[int]:
        """Let begin who may, and get to work at once."""
        begun = self.room.begin()
        for run in begun:
            self.room.leave(run.id)
            self.runs.keep(replace(run, state=State.RUNNING))
        return [run.id for run in begun]

    def end(self, *numbers: int) -> None:
        for number in numbers:
            self.runs.drop(RunId(number))


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def test_who_came_while_another_had_the_turn_is_next_and_the_place_said_so(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.receive(run_of(1), run_of(2), run_of(3))
    assert site.turn() == [1]
    site.receive(run_of(4, user=2))
    site.turn()
    assert site.room.places(9) == (4, 2, 3)
    site.end(1)
    assert site.turn() == [4]
    site.end(4)
    assert site.turn() == [2]


def test_nobody_starves_although_new_researchers_come_without_end(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.receive(run_of(1), run_of(2))
    begun = site.turn()
    for number in range(10, 40):
        site.receive(run_of(number, user=number), run_of(number + 1000, user=number + 1000))
        site.end(*begun)
        begun = site.turn()
        if begun == [2]:
            return
    pytest.fail("run 2 never had its turn")


@pytest.mark.parametrize("slots", [1, 3, 4, 6])
def test_those_who_always_want_more_get_the_same(slots: int, logged: list[Any]) -> None:
    chance = random.Random(slots)
    site = Site(Bounds(slots=slots))
    site.receive(*(run_of(1000 * user + number, user=user) for user in range(1, 5) for number in range(200)))
    served: Counter[int] = Counter()
    at_work = site.turn()
    for _ in range(200):
        ended = at_work.pop(chance.randrange(slots))
        served[ended // 1000] += 1
        site.end(ended)
        at_work += site.turn()
        assert max(Counter(run // 1000 for run in at_work).values()) == -(-slots // 4)
    assert slots > 1 or max(served.values()) - min(served.values()) <= 1


def test_who_waits_is_told_why_once_and_again_when_the_cause_changes(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.receive(run_of(1), run_of(2))
    site.turn()
    site.turn()
    assert site.room.reason == "the one slot is taken (limits.concurrent_runs)"
    site.room.hold(Cause.DISK, "there is only 1 MiB")
    site.end(1)
    assert site.turn() == []
    site.room.hold(Cause.DISK, "there is only 2 MiB")
    assert site.turn() == []
    assert site.room.reason == "there is only 2 MiB"
    site.room.hold(Cause.DISK, "")
    assert site.turn() == [2]
    assert site.room.reason == ""
    said = [(entry["event"], entry.get("cause"), entry["log_level"]) for entry in logged]
    assert said == [
        ("runs_wait", "slots", "info"),
        ("runs_wait", "disk", "warning"),
        ("runs_wait_no_longer", None, "info"),
    ]


def test_nobody_who_does_not_wait_is_told_anything(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.room.hold(Cause.DISK, "full")
    assert site.turn() == []
    assert logged == []
    assert site.room.reason == ""


def test_a_drain_says_so_to_those_it_leaves_for_later(logged: list[Any]) -> None:
    site = Site(Bounds(slots=4))
    site.runs.keep(parent(1))
    site.receive(run_of(2), run_of(3, parent=1))
    assert [run.id for run in site.room.begin_awaited()] == [3]
    assert "drains" in site.room.reason


def test_who_ends_while_waiting_waits_no_longer(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.receive(run_of(1), run_of(2))
    site.room.leave(RunId(1))
    site.end(1)
    assert site.turn() == [2]


def test_places_are_those_of_the_coming_turns(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.receive(run_of(1), run_of(2), run_of(3), run_of(4, user=2))
    site.turn()
    assert site.room.places(2) == (4, 2)


def test_new_bounds_count_for_the_next_turn(logged: list[Any]) -> None:
    site = Site(Bounds(slots=1))
    site.receive(run_of(1), run_of(2), run_of(3))
    assert site.turn() == [1]
    site.room.bounds = Bounds(slots=3)
    assert site.turn() == [2, 3]


# --- nothing stands still -------------------------------------------------------------------------------------


@dataclass
class Node:
    """A run's place in the forest: which task it is, and what that task asks for."""

    task: int
    user: int
    above: int | None
    children: list[int]


class World:
    """Several nodes, tasks that ask for tasks on any of them, and a chance that decides what happens next."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.tasks: dict[int, Node] = {}
        for _ in range(self.chance.randint(1, 8)):
            self.grow(None, self.chance.randint(1, 3), depth=self.chance.randint(0, 5))
        self.sites = [Site(self.bounds()) for _ in range(self.chance.randint(1, 3))]
        self.place = {task: self.chance.choice(self.sites) for task in self.tasks}
        self.asked = [task for task, node in self.tasks.items() if node.above is None]
        self.spawned: set[int] = set()
        self.over: set[int] = set()

    def bounds(self) -> Bounds:
        return Bounds(
            slots=self.chance.randint(1, 3),
            run_memory=4,
            total_memory=self.chance.choice([None, 1, 4, 8, 13]),
        )

    def grow(self, above: int | None, user: int, *, depth: int) -> int:
        task = len(self.tasks) + 1
        node = self.tasks[task] = Node(task, user, above, [])
        for _ in range(self.chance.randint(0, 3) if depth else 0):
            node.children.append(self.grow(task, user, depth=depth - 1))
        return task

    def is_running(self, task: int) -> bool:
        run = self.place[task].runs.get(RunId(task))
        return run is not None and run.state is State.RUNNING

    def possible(self) -> list[tuple[str, int]]:
        """Say what may happen next: a task arrives, a run asks for its subtasks, a run ends."""
        events = [("arrive", task) for task in self.asked]
        for task, node in self.tasks.items():
            if not self.is_running(task):
                continue
            if node.children and task not in self.spawned:
                events.append(("ask", task))
            elif self.over.issuperset(node.children):
                events.append(("end", task))
        return events

    def happen(self, event: str, task: int) -> None:
        site, node = self.place[task], self.tasks[task]
        if event == "arrive":
            self.asked.remove(task)
            site.receive(run_of(task, user=node.user, parent=node.above))
        elif event == "ask":
            self.spawned.add(task)
            self.asked += node.children
            site.runs.keep(replace(site.runs[RunId(task)], has_subtasks=True))
        else:
            self.over.add(task)
            site.end(task)
        for each in self.sites:
            each.weigh()
            each.turn()
            self.check(each)

    def check(self, site: Site) -> None:
        idle = [run.id for run in site.runs if run.has_subtasks]
        load, bounds = load_of(site.runs, beginning=(), idle=idle), site.bounds
        assert load.working <= bounds.slots
        # beyond what fits nothing but one run works
        in_flight, total = load.working + load.parents, bounds.total_memory
        assert load.working <= 1 or total is None or in_flight * bounds.run_memory <= total
        assert max(load.held.values(), default=0) <= bounds.fitting + 2 * MAX_NESTING

    def live(self) -> None:
        while events := self.possible():
            self.happen(*self.chance.choice(events))


@pytest.mark.parametrize("block", range(10))
def test_whatever_tasks_ask_for_and_whatever_the_bounds_are_everything_ends(
    block: int, logged: list[Any]
) -> None:
    for seed in range(30 * block, 30 * block + 30):
        world = World(seed)
        world.live()
        assert world.over == world.tasks.keys(), f"seed {seed}"
        assert not any(site.room.reason or len(site.runs) for site in world.sites)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("total_memory", [None, 1, 4, 8, 13])
def test_every_depth_of_nesting_ends_whatever_the_bounds_are(
    slots: int, total_memory: int | None, logged: list[Any]
) -> None:
    for depth, breadth, roots in itertools.product(range(MAX_NESTING + 1), (1, 2), (1, 2)):
        site = Site(Bounds(slots=slots, run_memory=4, total_memory=total_memory))
        if breadth**depth <= 64:
            assert nested_tasks_end(site, depth, breadth, roots), f"{depth} {breadth} {roots}"


def nested_tasks_end(site: Site, depth: int, breadth: int, roots: int) -> bool:
    """Have every run ask for *breadth* subtasks down to *depth*, and end when its own have ended."""
    numbers = itertools.count(1)
    left: dict[int, tuple[int, int | None]] = {}
    open_below: Counter[int] = Counter()

    def ask(parent: int | None, depth_left: int) -> None:
        number = next(numbers)
        left[number] = (depth_left, parent)
        site.receive(run_of(number, parent=parent))

    for _ in range(roots):
        ask(None, depth)
    while begun := site.turn():
        for number in begun:
            for _ in range(breadth if left[number][0] else 0):
                site.runs.keep(replace(site.runs[RunId(number)], has_subtasks=True))
                open_below[number] += 1
                ask(number, left[number][0] - 1)
        while over := [run.id for run in site.runs.begun() if not open_below[run.id]]:
            for number in over:
                _, above = left.pop(number)
                site.end(number)
                open_below[above or 0] -= 1
        site.weigh()
    return not left


# --- against those who do not keep to the rules ---------------------------------------------------------------


class Flood:
    """One researcher whose runs each ask for subtasks that nobody waits for; another who asks for one run."""

    def __init__(self, bounds: Bounds, *, busy: bool) -> None:
        self.site = Site(bounds)
        self.busy = busy
        self.numbers = itertools.count(1)
        self.site.receive(run_of(next(self.numbers)))

    def go_on(self) -> list[int]:
        """Let begin who may, and have each of the first researcher's make two subtasks and stay."""
        begun = self.site.turn()
        for number in begun:
            run = self.site.runs[RunId(number)]
            if run.task.init_user_id == 1:
                self.site.runs.keep(replace(run, has_subtasks=True))
                self.site.receive(*(run_of(next(self.numbers), parent=number) for _ in range(2)))
        parents = tuple(run.id for run in self.site.runs.begun() if run.has_subtasks)
        self.site.weigh(busy=parents if self.busy else ())
        return begun

    @property
    def containers(self) -> int:
        return len(self.site.runs.begun())


@pytest.mark.parametrize("slots", [1, 2])
def test_parents_that_go_on_computing_keep_their_slots(slots: int, logged: list[Any]) -> None:
    flood = Flood(Bounds(slots=slots, run_memory=4, total_memory=8), busy=True)
    for _ in range(40):
        flood.go_on()
        assert flood.containers <= slots


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("total_memory", [4, 8, 13])
def test_parents_that_do_nothing_cannot_fill_the_machine(
    slots: int, total_memory: int, logged: list[Any]
) -> None:
    flood = Flood(Bounds(slots=slots, run_memory=4, total_memory=total_memory), busy=False)
    for _ in range(60):
        flood.go_on()
    assert flood.containers <= flood.site.bounds.fitting + MAX_NESTING


@pytest.mark.parametrize("after", range(6))
def test_another_researcher_goes_next_whatever_subtasks_the_first_makes(
    after: int, logged: list[Any]
) -> None:
    flood = Flood(Bounds(slots=1, run_memory=4, total_memory=8), busy=False)
    for _ in range(after):
        flood.go_on()
    flood.site.receive(run_of(1000, user=2))
    begun = [*flood.go_on(), *flood.go_on()]
    assert 1000 in begun
