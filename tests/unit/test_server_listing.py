"""A listing is complete, or it says that it is not."""

import itertools
import random
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from node_agent.domain.ports import OpenRun
from node_agent.domain.run import RunId
from node_agent.domain.task import JobId, Task, TaskId
from node_agent.errors import ListingShifted, ServerUnreachable
from node_agent.server.exchange import AnswerTooLarge
from node_agent.server.listing import PAGE_SIZE, list_runs
from node_agent.server.wire import Page

TASK = Task(id=TaskId(1), job_id=JobId(1), image="i", collaboration_id=1)


class Books:
    """Open runs, paged as the server does: newest first."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)
        self.fetched: list[tuple[int, int]] = []
        self.too_large: set[int] = set()
        self._changes: dict[int, Callable[[], object]] = {}

    def then(self, after: int, change: Callable[[], object]) -> None:
        """Have something change once so many pages were fetched."""
        self._changes[after] = change

    def fetch(self, number: int, size: int) -> Page:
        self.fetched.append((number, size))
        newest_first = sorted(self.ids, reverse=True)
        ids = newest_first[(number - 1) * size : number * size]
        total = len(newest_first)
        if self.too_large.intersection(ids):
            raise AnswerTooLarge("too large", total=total)
        page = Page(
            runs=tuple(OpenRun(id=RunId(i), task=TASK) for i in ids),
            count=len(ids),
            has_next=number * size < total,
            total=total,
        )
        self._changes.get(len(self.fetched), lambda: None)()
        return page


def ids(books: Books) -> list[int]:
    return [run.id for run in list_runs(books.fetch)]


@pytest.mark.parametrize("count", [0, 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE, 3 * PAGE_SIZE + 7])
def test_every_run_is_listed_once_oldest_first(count: int) -> None:
    books = Books(*range(1, count + 1))
    assert ids(books) == list(range(1, count + 1))


def test_one_page_takes_one_call() -> None:
    books = Books(3, 1, 2)
    ids(books)
    assert books.fetched == [(1, PAGE_SIZE)]


def test_many_pages_are_read_from_the_last_to_the_first() -> None:
    books = Books(*range(1, 2 * PAGE_SIZE + 2))
    ids(books)
    assert [number for number, _ in books.fetched] == [1, 3, 2]


def test_the_first_page_is_read_once_more_when_anything_changed() -> None:
    books = Books(*range(1, 2 * PAGE_SIZE + 2))
    books.then(2, lambda: books.ids.remove(2))
    ids(books)
    assert [number for number, _ in books.fetched] == [1, 3, 2, 1]


@pytest.mark.parametrize("closed", [1, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE - 1])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_runs_that_end_while_the_list_is_read_hide_no_other(closed: int, after: int) -> None:
    books = Books(*range(1, 3 * PAGE_SIZE))
    books.then(after, lambda: books.ids.remove(closed))
    listed = ids(books)
    assert set(listed) | {closed} == set(range(1, 3 * PAGE_SIZE))
    assert len(listed) == len(set(listed))


def test_a_last_page_that_is_gone_by_the_time_it_is_asked_for_was_not_needed() -> None:
    books = Books(*range(1, 3 * PAGE_SIZE + 2))
    books.then(1, lambda: books.ids.remove(7))
    assert len(ids(books)) == 3 * PAGE_SIZE


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("closed", [[], [1], [PAGE_SIZE]])
def test_a_run_that_is_added_while_the_list_is_read_may_hide_another_and_that_is_said(
    after: int, closed: list[int]
) -> None:
    books = Books(*range(1, 3 * PAGE_SIZE))

    def change() -> None:
        books.ids = [*(number for number in books.ids if number not in closed), 1000]

    books.then(after, change)
    with pytest.raises(ListingShifted):
        ids(books)


@pytest.mark.parametrize("seed", range(100))
def test_whatever_ends_and_comes_a_list_that_is_said_to_be_whole_lacks_nothing_that_was_open_throughout(
    seed: int,
) -> None:
    chance = random.Random(seed)
    books = Books(*range(1, chance.randint(1, 6 * PAGE_SIZE)))
    throughout, coming = set(books.ids), itertools.count(1000)

    def change() -> None:
        for _ in range(chance.choice([0, 1, 2])):
            ended = chance.choice(sorted(throughout) or [None])
            if chance.random() < 0.8 and ended is not None:
                throughout.discard(ended)
                books.ids.remove(ended)
            else:
                books.ids.append(next(coming))

    for fetched in range(1, 20):
        books.then(fetched, change)
    try:
        listed = ids(books)
    except ListingShifted:
        assert max(books.ids) >= 1000
    else:
        assert throughout <= set(listed)
        assert len(listed) == len(set(listed))


def test_what_was_read_of_a_list_that_shifted_is_given_all_the_same() -> None:
    books = Books(*range(1, 3 * PAGE_SIZE))
    books.then(2, lambda: books.ids.append(1000))
    listed = []
    with pytest.raises(ListingShifted):
        listed.extend(run.id for run in list_runs(books.fetch))
    assert set(range(1, 3 * PAGE_SIZE)) - set(listed) == {PAGE_SIZE}
    assert 1000 in listed


def test_a_number_that_is_not_that_of_the_elements_is_noticed() -> None:
    with pytest.raises(ListingShifted):
        list(list_runs(lambda _number, _size: Page(runs=(), count=0, has_next=False, total=3)))


def test_a_server_that_shows_the_same_page_again_and_again_is_stopped() -> None:
    books = Books(*range(1, PAGE_SIZE + 1))

    def fetch(_number: int, size: int) -> Page:
        page = books.fetch(1, size)
        return Page(runs=page.runs, count=page.count, has_next=True, total=10**15)

    with pytest.raises(ListingShifted):
        list(list_runs(fetch))
    assert len(books.fetched) == 3


def test_a_server_that_promises_pages_without_end_is_stopped() -> None:
    books = Books(1)

    def fetch(number: int, size: int) -> Page:
        page = books.fetch(number, size)
        return Page(runs=page.runs, count=page.count, has_next=True, total=10**15)

    with pytest.raises(ListingShifted):
        list(list_runs(fetch))
    assert len(books.fetched) == 2


def test_a_server_that_does_not_count_is_believed_for_one_page_only() -> None:
    def fetch(_number: int, _size: int) -> Page:
        return Page(runs=(), count=0, has_next=has_next, total=None)

    has_next = False
    assert list(list_runs(fetch)) == []
    has_next = True
    with pytest.raises(ServerUnreachable, match="how many"):
        list(list_runs(fetch))


def test_one_run_that_is_too_large_does_not_hide_the_others() -> None:
    books = Books(*range(1, 6))
    books.too_large = {3}
    assert ids(books) == [1, 2, 4, 5]


def test_a_large_page_met_late_repeats_nothing() -> None:
    books = Books(*range(1, 2 * PAGE_SIZE + 1))
    books.too_large = {PAGE_SIZE + 5}
    expected = [i for i in range(1, 2 * PAGE_SIZE + 1) if i != PAGE_SIZE + 5]
    assert sorted(ids(books)) == expected


def test_a_run_that_one_page_shows_twice_is_given_once_and_that_is_logged() -> None:
    first, second = (
        OpenRun(id=RunId(4), task=Task(id=TaskId(number), job_id=JobId(1), image="i", collaboration_id=1))
        for number in (1, 2)
    )
    page = Page(runs=(second, first), count=2, has_next=False, total=2)
    with capture_logs() as lines:
        assert list(list_runs(lambda _number, _size: page)) == [first]
    assert [line["event"] for line in lines] == ["run_listed_twice"]
