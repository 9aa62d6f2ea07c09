"""Listings: filters, order and pages. Owns how a query becomes conditions and links; must not know what is listed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from node_agent.sandbox.server.call import Answer, Call, number
from node_agent.sandbox.server.database import Condition, Row, Slice
from node_agent.sandbox.server.refusal import bad

PER_PAGE: Final = 10

Filters = Mapping[str, tuple[str, Callable[[str], Any]]]
"""By parameter: the condition with one place for a value, and how the value is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What can be listed: a table or view, its filters, and the columns it may be ordered by."""

    source: str
    filters: Filters
    sortable: tuple[str, ...] = ("id",)
    order: str = "id"


def listed(
    call: Call, listing: Listing, conditions: Sequence[Condition], show: Callable[[Row], object]
) -> Answer:
    """Answer a listing with one page of what meets the conditions and the query."""
    page = _Page.of(call)
    wanted = Slice(order=_order(call, listing), limit=page.size, offset=(page.number - 1) * page.size)
    chosen = [*conditions, *_conditions(call, listing.filters)]
    rows, total = call.backend.database.select(listing.source, chosen, wanted)
    links = page.links(call, total)
    return Answer(
        body={"data": [show(row) for row in rows], "links": links},
        headers={
            "total-count": str(total),
            "Link": ", ".join(f'<{link}>; rel="{name}"' for name, link in links.items()),
        },
    )


def _conditions(call: Call, filters: Filters) -> list[Condition]:
    # the real client sends some filters without a value
    asked = {name: text for name, text in call.query.items() if name in filters and text}
    return [Condition(filters[name][0], (filters[name][1](text),)) for name, text in asked.items()]


def _order(call: Call, listing: Listing) -> str:
    wanted = call.query.get("sort", "")
    if not wanted:
        return listing.order
    return ", ".join(_ordered(word, listing.sortable) for word in wanted.split(","))


def _ordered(word: str, sortable: Sequence[str]) -> str:
    column = word.removeprefix("-")
    if column not in sortable:
        raise bad(f"Nothing can be sorted by {column[:40]!r}; possible are: {', '.join(sortable)}")
    return f"{column} DESC" if word.startswith("-") else column


@dataclass(frozen=True, slots=True)
class _Page:
    number: int
    size: int

    @classmethod
    def of(cls, call: Call) -> "_Page":
        page = cls(number(call.query.get("page", "1")), number(call.query.get("per_page", str(PER_PAGE))))
        if page.number < 1 or page.size < 1:
            raise bad("`page` and `per_page` begin with 1")
        return page

    def links(self, call: Call, total: int) -> dict[str, str]:
        last = -(-total // self.size)
        numbers = {"first": 1, "self": self.number}
        if last:
            numbers["last"] = last
        if self.number > 1:
            numbers["previous"] = self.number - 1
        if self.number < last:
            numbers["next"] = self.number + 1
        query = [(name, text) for name, text in call.query.items(multi=True) if name != "page"]
        return {
            name: f"{call.path}?{urlencode([*query, ('page', value)])}" for name, value in numbers.items()
        }
