"""The complete listing of open runs, page by page.

The server lists the newest run first, whatever order is asked for, and runs end while their list is read. So the pages
are read from the last to the first: a run that ends moves others to pages that are read later, and none is missed. Only a
new run moves them the other way. It shows on the first page, which is therefore read once more when anything changed.

Owns paging and the proof that nothing was missed. Must not know how a page is fetched or what a run is for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import structlog

from node_agent.domain.ports import OpenRun
from node_agent.domain.run import RunId
from node_agent.errors import ListingShifted, ServerUnreachable
from node_agent.server.exchange import AnswerTooLarge
from node_agent.server.wire import Page

log = structlog.get_logger()

PAGE_SIZE = 25
"""The real server looks at each run for ten milliseconds, and answers nobody else before a page is done."""

Fetch = Callable[[int, int], Page]
"""Fetches page *number* (from 1) of *size* elements."""


def list_runs(fetch: Fetch) -> Iterator[OpenRun]:
    """Give every open run once, oldest first, and raise ListingShifted at the end unless these were all."""
    given: set[RunId] = set()
    try:
        yield from _walk(fetch, PAGE_SIZE, given)
    except AnswerTooLarge:
        # a few large inputs on one page must not keep the node from its work: ask for them one at a time
        yield from _walk(_or_lost(fetch), 1, given)


def _walk(fetch: Fetch, size: int, given: set[RunId]) -> Iterator[OpenRun]:
    """Give the runs of all pages, leaving out those *given* before."""
    first = fetch(1, size)
    count = _page_count(first, size)
    if count == 1:
        yield from _new_on(first, given)
        if first.total not in {None, first.count}:
            raise _shifted()
        return
    pages = [_Mark.of(first)]
    for page in _pages_before_the_first(fetch, size, count):
        pages.append(_Mark.of(page))
        yield from _new_on(page, given)
    if _are_as_one(pages):
        yield from _new_on(first, given)
        return
    first.discard()
    last = fetch(1, size)
    yield from _new_on(last, given)
    if _have_new([*pages, _Mark.of(last)]):
        raise _shifted()


def _pages_before_the_first(fetch: Fetch, size: int, count: int) -> Iterator[Page]:
    """Give all pages but the first, the last one first."""
    seen: set[RunId] = set()
    number = count
    while number > 1:
        page = fetch(number, size)
        there = number if page.total is None else math.ceil(page.total / size)
        if (number <= there and not page.count) or not _brings(page, seen):
            raise _shifted()  # also how a server is stopped that promises pages without end
        yield page
        # the pages of runs that ended meanwhile are no more
        number = min(number - 1, there)


@dataclass(frozen=True, slots=True)
class _Mark:
    """What tells whether pages belong together."""

    total: int | None
    count: int
    ids: frozenset[RunId]

    @classmethod
    def of(cls, page: Page) -> "_Mark":
        return cls(page.total, page.count, frozenset(run.id for run in page.runs))


def _are_as_one(pages: Sequence[_Mark]) -> bool:
    """Tell whether nothing changed: all pages told the same number, they have so many runs, and none twice."""
    ids = [run_id for page in pages for run_id in page.ids]
    return {page.total for page in pages} == {sum(page.count for page in pages)} and len(ids) == len({*ids})


def _brings(page: Page, seen: set[RunId]) -> bool:
    """Tell whether any run of the page is not among those *seen*, or it has none, and note them."""
    new = {run.id for run in page.runs} - seen
    seen |= new
    return bool(new) or not page.runs


def _new_on(page: Page, given: set[RunId]) -> Iterator[OpenRun]:
    """Yield the runs of a page that were not *given* before, oldest first; of two with one number only the first."""
    here: set[RunId] = set()
    for run in reversed(page.runs):
        if run.id in here:
            # pages that shift show a run on two of them, but no server shows one twice on the same page
            log.warning("run_listed_twice", run_id=run.id)
        elif run.id not in given:
            yield run
        here.add(run.id)
    page.discard()
    given.update(here)


def _have_new(pages: Sequence[_Mark]) -> bool:
    """Tell whether runs were added since the first page: there are more, or one has a greater number."""
    newest = max(pages[0].ids, default=None)
    grown = any((later.total or 0) > (before.total or 0) for before, later in pairwise(pages))
    return grown or (newest is not None and any(run_id > newest for page in pages for run_id in page.ids))


def _page_count(first: Page, size: int) -> int:
    if not first.has_next:
        return 1
    if first.total is None:
        raise ServerUnreachable("The server does not say how many open runs there are.")
    return math.ceil(first.total / size)


def _shifted() -> ListingShifted:
    return ListingShifted("The listing of open runs changed while it was read.")


def _or_lost(fetch: Fetch) -> Fetch:
    """Replace an element that cannot be read at all by nothing."""

    def fetch_or_lose(number: int, size: int) -> Page:
        try:
            return fetch(number, size)
        except AnswerTooLarge as error:
            if error.total is None:
                raise
            log.error("run_ignored", why=str(error))  # noqa: TRY400 - it is no bug of ours
            return Page(runs=(), count=size, has_next=number * size < error.total, total=error.total)

    return fetch_or_lose
