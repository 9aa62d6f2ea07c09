"""Which calls an algorithm may make: the table, and nothing but the table.

Owns methods and paths, and what each call asks about. A path that does not match to the last character is not forwarded,
so nothing can be smuggled into the server's address. Knows nothing of tokens, bodies or the network.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

_SEGMENTS: Mapping[str, str] = {
    "{id}": r"[0-9]{1,18}",
    "{uuid}": r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
}


class Treatment(Enum):
    """What happens to what passes through."""

    PLAIN = auto()
    OPEN = auto()
    """Needs no token."""
    STATUS = auto()
    """Says whether a task is over."""
    NEW_TASK = auto()
    RESULT_LIST = auto()
    RESULT = auto()
    BLOB_UP = auto()
    BLOB_DOWN = auto()


class About(Enum):
    """What a call asks about, which decides what the run must have to do with it."""

    NOTHING = auto()
    """Nothing that belongs to a task."""
    TASK = auto()
    """The task whose number is in the path."""
    TASKS = auto()
    """Tasks of a job or below a task, named in the query."""
    ROWS = auto()
    """Runs or results of a task named in the query."""
    ROW = auto()
    """The run, or its result, whose number is in the path; the answer says which task it is of."""
    COLLABORATION = auto()
    """The collaboration whose number is in the path."""
    MEMBERS = auto()
    """Organizations, studies or nodes, perhaps of a collaboration named in the query."""
    BLOB = auto()
    """Content of the blob store."""


@dataclass(frozen=True, slots=True)
class Route:
    """One call: *path* is the path that was asked for once the route is found, else the template."""

    method: str
    template: str
    treatment: Treatment = Treatment.PLAIN
    about: About = About.NOTHING
    path: str = ""

    @property
    def number(self) -> int:
        """Return the number in the path; 0 when it holds none."""
        found = re.search("[0-9]+", self.path) if "{id}" in self.template else None
        return int(found[0]) if found else 0

    @property
    def blob(self) -> str:
        """Return the name of the blob in the path."""
        return self.path.rpartition("/")[2]


ROUTES = (
    Route("GET", "run", about=About.ROWS),
    Route("GET", "run/{id}", about=About.ROW),
    Route("GET", "result", Treatment.RESULT_LIST, About.ROWS),
    Route("GET", "result/{id}", Treatment.RESULT, About.ROW),
    Route("GET", "task", about=About.TASKS),
    Route("GET", "task/{id}", about=About.TASK),
    Route("GET", "task/{id}/status", Treatment.STATUS, About.TASK),
    Route("POST", "task", Treatment.NEW_TASK),
    Route("GET", "organization", about=About.MEMBERS),
    Route("GET", "organization/{id}"),
    Route("GET", "collaboration/{id}", about=About.COLLABORATION),
    Route("GET", "study", about=About.MEMBERS),
    Route("GET", "study/{id}"),
    Route("GET", "node", about=About.MEMBERS),
    Route("GET", "node/{id}"),
    Route("GET", "vpn/algorithm/addresses"),
    Route("GET", "version", Treatment.OPEN),
    Route("GET", "health", Treatment.OPEN),
    Route("GET", "blobstream/status"),
    Route("GET", "blobstream/{uuid}", Treatment.BLOB_DOWN, About.BLOB),
    Route("POST", "blobstream", Treatment.BLOB_UP),
)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("/" + "/".join(_SEGMENTS.get(part, re.escape(part)) for part in template.split("/")))


_PATTERNS = tuple((_pattern(route.template), route) for route in ROUTES)


class WrongMethod(Exception):
    """The path exists, but not with this method; *allowed* are the methods it has."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__(", ".join(allowed))
        self.allowed = allowed


def find_route(method: str, path: str) -> Route | None:
    """Find the route of a call; None when there is no such path. Raises WrongMethod."""
    routes = [route for pattern, route in _PATTERNS if pattern.fullmatch(path)]
    for route in routes:
        if route.method == method:
            return replace(route, path=path.removeprefix("/"))
    if routes:
        raise WrongMethod(tuple(route.method for route in routes))
    return None
