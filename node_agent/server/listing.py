"""The complete listing of open runs, page by page.

Owns paging and the proof that nothing was missed. Must not know how a page is fetched or what a run is for.
"""

from collections.abc import Callable, Iterator
from itertools import count

import structlog

from node_agent.domain.ports import OpenRun
from node_agent.domain.run import RunId
from node_agent.errors import ServerUnreachable
from node_agent.server.exchange import AnswerTooLarge
from node_agent.server.wire import Page

log = structlog.get_logger()

PAGE_SIZE = 50
MAX_PAGES = 10_000

Fetch = Callable[[int, int], Page]
"""Fetches page *number* (from 1) of *size* elements."""


def list_runs(fetch: Fetch) -> Iterator[OpenRun]:
    """Give every open run once, and raise ServerUnreachable at the end unless these were all."""
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
    total: int | None = None
    for number in _numbers():
        page = fetch(number, size)
        counted += page.count
        total = _unchanged(total, page, seen)
        seen.update(run.id for run in page.runs)
        yield from (run for run in page.runs if run.id not in given)
        given |= seen
        if not page.has_next:
            break
    if total is not None and counted != total:
        raise ServerUnreachable(f"The listing of open runs is not complete: {counted} of {total} arrived.")


def _unchanged(total: int | None, page: Page, seen: set[RunId]) -> int | None:
    """Give the length of the list, which must not have changed since the pages before."""
    if total not in {None, page.total} or any(run.id in seen for run in page.runs):
        raise ServerUnreachable("The listing of open runs changed while it was read.")
    return page.total


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


def _numbers() -> Iterator[int]:
    for number in count(1):
        if number > MAX_PAGES:
            raise ServerUnreachable(f"The listing of open runs does not end after {MAX_PAGES} pages.")
        yield number
