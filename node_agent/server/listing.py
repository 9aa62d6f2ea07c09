"""The complete listing of open runs, page by page.

Owns paging and the proof that nothing was missed. Must not know how a page is fetched or what a run is for.
"""

import math
from collections.abc import Callable, Iterator

import structlog

from node_agent.domain.ports import OpenRun
from node_agent.domain.run import RunId
from node_agent.errors import ServerUnreachable
from node_agent.server.exchange import AnswerTooLarge
from node_agent.server.wire import Page

log = structlog.get_logger()

PAGE_SIZE = 50

Fetch = Callable[[int, int], Page]
"""Fetches page *number* (from 1) of *size* elements."""


def list_runs(fetch: Fetch) -> Iterator[OpenRun]:
    """Give every open run once, oldest first, and raise ServerUnreachable at the end unless these were all."""
    given: set[RunId] = set()
    try:
        yield from _walk(fetch, PAGE_SIZE, given)
    except AnswerTooLarge:
        # a few large inputs on one page must not keep the node from its work: ask for them one at a time
        yield from _walk(_or_lost(fetch), 1, given)


def _walk(fetch: Fetch, size: int, given: set[RunId]) -> Iterator[OpenRun]:
    """Give the runs of all pages, leaving out those *given* before."""
    counted = 0
    seen: set[RunId] = set()
    for page in _pages(fetch, size):
        if not seen.isdisjoint(run.id for run in page.runs):
            raise _changed()
        seen.update(run.id for run in page.runs)
        counted += page.count
        yield from (run for run in reversed(page.runs) if run.id not in given)
        page.discard()
        given |= seen
    if page.total not in {None, counted}:
        raise _changed()


def _pages(fetch: Fetch, size: int) -> Iterator[Page]:
    """Give all pages, the last one first: the server lists the newest run first, whatever order is asked for."""
    newest = fetch(1, size)
    for number in range(_page_count(newest, size), 1, -1):
        page = fetch(number, size)
        if page.total != newest.total or not page.count:
            raise _changed()
        yield page
    yield newest


def _page_count(newest: Page, size: int) -> int:
    if not newest.has_next:
        return 1
    if newest.total is None:
        raise ServerUnreachable("The server does not say how many open runs there are.")
    return math.ceil(newest.total / size)


def _changed() -> ServerUnreachable:
    return ServerUnreachable("The listing of open runs changed while it was read.")


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
