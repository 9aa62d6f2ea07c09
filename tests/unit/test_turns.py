"""Whose run begins next: nobody starves, nothing stands still, and whoever waits is told why."""

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
    PARENTS_PER_SLOT,
    SUBTASKS_IN_A_ROW,
    Bounds,
    Cause,
    Kind,
    Load,
    Standing,
    admitted,
    depths,
    hindrance,
    in_turn,
    kind_of,
    load_of,
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
    return [run.id for run in in_turn(waiting, Standing(**standing))]


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
    assert order(runs[2], runs[3], depth=depths(runs)) == [4, 3]


def test_a_server_that_says_that_tasks_stand_above_each_other_in_a_circle_holds_nothing_up() -> None:
    runs = [run_of(1, parent=2), run_of(2, parent=1), run_of(3, parent=3)]
    assert sorted(order(*runs, depth=depths(runs))) == [1, 2, 3]


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
    turns = list(in_turn(waiting, standing))
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
    ("kind", "load", "bounds", "cause"),
    [
        (Kind.FIRST, Load(1), Bounds(slots=2), None),
        (Kind.FIRST, Load(2), Bounds(slots=2), Cause.SLOTS),
        (Kind.SUBTASK, Load(2), Bounds(slots=2), Cause.SLOTS),
        (Kind.FIRST, Load(1), Bounds(slots=9, run_memory=4, total_memory=8), None),
        (Kind.FIRST, Load(2), Bounds(slots=9, run_memory=4, total_memory=8), Cause.MEMORY),
        (Kind.FIRST, Load(1, parents=1), Bounds(slots=9, run_memory=4, total_memory=8), Cause.MEMORY),
        (Kind.SUBTASK, Load(1, parents=5), Bounds(slots=9, run_memory=4, total_memory=8), None),
        (Kind.SUBTASK, Load(2, parents=5), Bounds(slots=9, run_memory=4, total_memory=8), Cause.MEMORY),
        (Kind.FIRST, Load(0, parents=PARENTS_PER_SLOT), Bounds(slots=1), Cause.PARENTS),
        (Kind.SUBTASK, Load(0, parents=PARENTS_PER_SLOT), Bounds(slots=1), None),
        (Kind.FIRST, Load(), Bounds(slots=1, run_memory=9, total_memory=4), None),
        (Kind.SUBTASK, Load(0, parents=3), Bounds(slots=1, run_memory=9, total_memory=4), None),
    ],
)
def test_a_run_waits_for_what_is_short(kind: Kind, load: Load, bounds: Bounds, cause: Cause | None) -> None:
    found = hindrance(kind, load, bounds)
    assert (None if found is None else found.cause) == cause


def test_the_reason_names_the_setting_that_decides() -> None:
    bounds = Bounds(slots=4, run_memory=4 * GIB, total_memory=10 * GIB)
    slots = hindrance(Kind.FIRST, Load(4), bounds)
    memory = hindrance(Kind.FIRST, Load(2), bounds)
    assert slots is not None
    assert slots.text == "all 4 slots are taken (limits.concurrent_runs)"
    assert memory is not None
    assert "2 in flight may use 8 GiB of the 10 GiB" in memory.text
    assert "limits.total_memory" in memory.text


def test_a_run_works_from_its_admission_until_its_container_has_ended() -> None:
    runs = [run_of(1), run_of(2), working(3), parent(4), run_of(5, state=State.CAPTURED)]
    assert load_of(runs, beginning={RunId(2)}) == Load(working=2, parents=1)


def test_as_many_are_admitted_as_there_is_room_for_each_kind() -> None:
    waiting = [run_of(1), run_of(2), run_of(8, parent=3), run_of(9, parent=3)]
    bounds = Bounds(slots=3, run_memory=4, total_memory=12)
    assert [run.id for run in admitted(waiting, Standing(), Load(0, parents=1), bounds)] == [8, 9]
    assert [run.id for run in admitted(waiting, Standing(), Load(), bounds)] == [8, 9, 1]


# --- the room -------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """One node: what is on it, and who waits there."""

    bounds: Bounds
    runs: RunTable = field(default_factory=RunTable)

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.runs, self.bounds)

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
            each.turn()
            self.check(each)

    def check(self, site: Site) -> None:
        load, bounds = load_of(site.runs, beginning=()), site.bounds
        assert load.working <= bounds.slots
        total = bounds.total_memory
        assert total is None or load.working <= 1 or load.working * bounds.run_memory <= total

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
