"""What is done by the clock."""

import pytest

from node_agent.timetable import Timetable


class Diary:
    def __init__(self) -> None:
        self.entries: list[str] = []

    def often(self) -> None:
        self.entries.append("often")

    def seldom(self) -> None:
        self.entries.append("seldom")


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def timetable(diary: Diary) -> Timetable:
    return Timetable({diary.often: 1.0, diary.seldom: 10.0}, start=100.0)


def test_nothing_is_due_at_the_start(timetable: Timetable, diary: Diary) -> None:
    timetable.run_due(100.9)
    assert diary.entries == []
    assert timetable.next_at() == 101.0


def test_each_action_comes_at_its_time(timetable: Timetable, diary: Diary) -> None:
    for second in range(101, 111):
        timetable.run_due(float(second))
    assert diary.entries == ["often"] * 10 + ["seldom"]


def test_what_was_missed_is_done_once_and_not_made_up_for(timetable: Timetable, diary: Diary) -> None:
    timetable.run_due(1000.0)
    timetable.run_due(1000.5)
    assert diary.entries == ["often", "seldom"]
    assert timetable.next_at() == 1001.0


def test_an_action_that_is_put_off_is_not_hastened(timetable: Timetable, diary: Diary) -> None:
    timetable.put_off(diary.often, to=102.5)
    timetable.put_off(diary.often, to=101.5)
    timetable.run_due(102.0)
    assert diary.entries == []
    timetable.run_due(102.5)
    assert diary.entries == ["often"]
    assert timetable.next_at() == 103.5


def test_an_action_that_is_hastened_is_not_put_off(timetable: Timetable, diary: Diary) -> None:
    timetable.hasten(diary.seldom, to=100.5)
    timetable.hasten(diary.seldom, to=105.0)
    timetable.run_due(100.5)
    timetable.run_due(105.0)
    assert diary.entries == ["seldom", "often"]
