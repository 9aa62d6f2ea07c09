"""Who is kept waiting for a task, for how long, and when the server is asked meanwhile; no thread, no socket."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from node_agent.domain.secret import Secret
from node_agent.proxy import held
from node_agent.proxy.app import is_unfinished
from node_agent.proxy.held import Question, Waits

PATH = "task/3/status"


@dataclass
class StubLine:
    let_gone: int = 0
    reassured: int = 0

    def let_go(self):
        self.let_gone += 1

    def reassure(self):
        assert not self.let_gone
        self.reassured += 1


@dataclass
class Scene:
    """Waits with a clock of its own, and a server that says when which task is over."""

    now: float = 0.0
    over: set = field(default_factory=set)
    dead: set = field(default_factory=set)
    looks: list = field(default_factory=list)
    begun: list = field(default_factory=list)

    def __post_init__(self):
        self.waits = Waits(look=self.look, is_alive=self.is_alive, monotonic=lambda: self.now)
        self.waits.look_with(self.begun.append)

    def look(self, question):
        self.looks.append((round(self.now, 2), question.path))
        return question.path not in self.over

    def is_alive(self, question):
        return question.run not in self.dead

    def ask(self, run=1, path=PATH, *, understands=True):
        line = StubLine()
        return line, self.waits.keep(Question(path, run, Secret("token"), understands), line)

    def ask_again(self, run=1, path=PATH, *, slept=1.0, **more):
        self.waits.told(run, path)
        self.run(slept)
        line, kept = self.ask(run, path, **more)
        assert kept
        return line

    def run(self, seconds):
        """Let time pass as the thread would; says when the last turn was."""
        end = self.now + seconds
        while True:
            again = self.waits.turn()
            while self.begun:
                self.begun.pop(0)()
                again = 0.0
            if again is None or self.now + again > end:
                self.now = end
                return
            self.now += again


@pytest.fixture
def scene():
    return Scene()


def test_who_asks_for_the_first_time_is_answered_at_once(scene):
    _, kept = scene.ask()
    assert not kept


def test_who_asks_again_what_it_was_just_told_is_kept_until_the_task_is_over(scene):
    line = scene.ask_again()
    scene.run(5)
    assert not line.let_gone
    scene.over.add(PATH)
    scene.run(held.LAST_LOOK)
    assert line.let_gone == 1


def test_who_asks_about_one_task_and_then_another_is_answered_at_once(scene):
    scene.waits.told(1, "task/4/status")
    assert not scene.ask()[1]
    assert not scene.ask(path="task/5/status")[1]


def test_what_one_run_was_told_keeps_no_other(scene):
    scene.waits.told(1, PATH)
    assert not scene.ask(run=2)[1]


def test_nobody_is_kept_before_there_is_somebody_to_look():
    waits = Waits(look=lambda _: True, is_alive=lambda _: True)
    waits.told(1, PATH)
    assert not waits.keep(Question(PATH, 1, Secret("token"), understands=True), StubLine())


def test_the_server_is_asked_at_growing_pauses_that_stay_short(scene):
    scene.ask_again()
    scene.run(19)
    pauses = [b - a for (a, _), (b, _) in pairwise(scene.looks)]
    assert pauses[0] == pytest.approx(held.FIRST_LOOK, abs=0.02)
    assert pauses[-1] == pytest.approx(held.LAST_LOOK, abs=0.02)
    assert all(b >= a - 0.02 for a, b in pairwise(pauses))
    assert len(scene.looks) < 25


def test_however_many_wait_for_a_task_it_is_looked_at_once_at_a_time(scene):
    for run in range(50):
        scene.waits.told(run, PATH)
    lines = [scene.ask(run=run) for run in range(50)]
    assert all(kept for _, kept in lines)
    scene.waits.turn()
    scene.now += 1
    scene.waits.turn()
    assert len(scene.begun) == 1
    scene.over.add(PATH)
    scene.run(1)
    assert {line.let_gone for line, _ in lines} == {1}


def test_an_event_has_the_task_looked_at_now_and_often_for_a_while(scene):
    scene.ask_again()
    scene.run(15)
    looked = len(scene.looks)
    scene.waits.task_changed(3)
    scene.run(0.5)
    assert len(scene.looks) >= looked + 3
    scene.waits.task_changed(4)  # nobody waits for that one


def test_an_event_that_comes_while_the_task_is_looked_at_has_it_looked_at_again(scene):
    scene.ask_again()
    scene.run(15)
    scene.waits.task_changed(3)
    scene.waits.turn()
    scene.waits.task_changed(3)
    looked = len(scene.looks)
    scene.run(0.05)
    assert len(scene.looks) == looked + 2


def test_a_client_that_takes_no_interim_answer_is_kept_only_briefly_and_hears_nothing(scene):
    line = scene.ask_again(slept=60, understands=False)
    scene.run(held.BRIEFLY - 0.1)
    assert not line.let_gone
    scene.run(0.2)
    assert (line.let_gone, line.reassured) == (1, 0)


@pytest.mark.parametrize(("slept", "at_most"), [(1, 20), (2.25, 20), (10, 30), (60, 180), (300, 240)])
def test_who_sleeps_longer_between_two_questions_is_kept_longer(scene, slept, at_most):
    line = scene.ask_again(slept=slept)
    scene.run(at_most - 0.1)
    assert not line.let_gone
    scene.run(0.2)
    assert line.let_gone == 1


def test_who_waits_is_told_so_now_and_then(scene):
    line = scene.ask_again()
    scene.run(3 * held.REASSURE_SECONDS + 1)
    assert line.reassured == 3


def test_a_server_that_answers_anything_else_lets_everybody_go(scene):
    line = scene.ask_again()
    scene.over.add(PATH)  # "not over" is the only answer that keeps anybody
    scene.run(0)
    assert line.let_gone == 1


def test_a_run_that_is_killed_is_kept_no_longer(scene):
    line, other = scene.ask_again(run=1), scene.ask_again(run=2)
    scene.dead.add(1)
    scene.run(held.LAST_LOOK)
    assert (line.let_gone, other.let_gone) == (1, 0)


def test_one_run_cannot_take_all_the_room(scene):
    scene.waits.told(1, PATH)
    kept = [scene.ask()[1] for _ in range(held.PER_RUN + 3)]
    assert kept == [True] * held.PER_RUN + [False] * 3
    scene.ask_again(run=2)


def test_there_is_an_end_to_how_many_are_kept(scene):
    for run in range(held.IN_ALL + 5):
        scene.waits.told(run, PATH)
    assert [scene.ask(run=run)[1] for run in range(held.IN_ALL + 5)].count(True) == held.IN_ALL


def test_nobody_is_kept_after_the_stop(scene):
    scene.waits.told(1, PATH)
    scene.waits.stop()
    assert not scene.ask()[1]
    scene.waits.keep_time()  # it ends


def test_while_nobody_waits_there_is_nothing_to_do_and_no_time_to_keep(scene):
    assert scene.waits.turn() is None
    line = scene.ask_again()
    scene.over.add(PATH)
    scene.run(1)
    assert line.let_gone == 1
    assert scene.waits.turn() is None
    assert scene.looks == [(1.0, PATH)]


@pytest.mark.parametrize("status", [["active"], {"a": 1}, None, 3])
def test_a_status_that_is_no_text_is_not_waited_for(status: object) -> None:
    assert not is_unfinished(json.dumps({"status": status}).encode())
