"""A listing is complete, or it says that it is not."""

from collections.abc import Callable

import pytest

from node_agent.domain.ports import OpenRun
from node_agent.domain.run import RunId
from node_agent.domain.task import JobId, Task, TaskId
from node_agent.errors import ServerUnreachable
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
        self.after_fetch: Callable[[], None] = lambda: None

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
        self.after_fetch()
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


@pytest.mark.parametrize("change", ["closed", "created"])
def test_a_listing_that_changed_meanwhile_is_thrown_away(change: str) -> None:
    books = Books(*range(1, 3 * PAGE_SIZE))

    def once() -> None:
        books.after_fetch = lambda: None
        books.ids = books.ids[1:] if change == "closed" else [*books.ids, 1000]

    books.after_fetch = once
    with pytest.raises(ServerUnreachable, match="changed while it was read"):
        ids(books)


def test_a_run_that_moved_to_another_page_is_noticed() -> None:
    books = Books(*range(1, 3 * PAGE_SIZE + 1))

    def swap() -> None:
        # the oldest is closed while one is created: the number stays the same
        books.after_fetch = lambda: None
        books.ids = [*books.ids[1:], 1000]

    books.after_fetch = swap
    with pytest.raises(ServerUnreachable, match="changed while it was read"):
        ids(books)


def test_a_number_that_is_not_that_of_the_elements_is_noticed() -> None:
    with pytest.raises(ServerUnreachable, match="changed while it was read"):
        list(list_runs(lambda _number, _size: Page(runs=(), count=0, has_next=False, total=3)))


def test_a_server_that_promises_pages_without_end_is_stopped() -> None:
    books = Books(1)

    def fetch(number: int, size: int) -> Page:
        page = books.fetch(number, size)
        return Page(runs=page.runs, count=page.count, has_next=True, total=10**15)

    with pytest.raises(ServerUnreachable):
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
