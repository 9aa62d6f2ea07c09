"""Which network namespace kept ready is lent to which run, and which of them is to go.

One run at a time is in a namespace. What a run leaves in one - counts of its traffic, ports that are closing - is for no
stranger to see: a namespace is handed on only within a series (one image, asked for by one person), after a run that ended
well, and never between two series. Owns the books of that, for any thread. Must not talk to an engine.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from node_agent.domain.run import ContainerId

UNUSED_SECONDS = 60.0
"""How long a namespace waits for the next run of its series."""
REPLACING_SECONDS = 2.0
"""The shortest time between two namespaces that one series loses to the next: many series at once must not cost the engine
more than they gain."""
_NOBODY = "nobody"
"""A series that no run belongs to: the namespace is not handed on."""


@dataclass(slots=True)
class _Namespace:
    """One namespace, and who is or was in it."""

    holder: ContainerId
    series: str = ""
    """Whose runs were in it; empty as long as it is fresh."""
    taken: bool = False
    free_since: float = 0.0

    @property
    def is_fresh(self) -> bool:
        return not self.taken and not self.series

    @property
    def is_used(self) -> bool:
        return not self.taken and bool(self.series)


class Lending:
    """The books of at most *most* namespaces, each known by the container that holds it."""

    def __init__(self, most: int, *, now: Callable[[], float]) -> None:
        self._most = most
        self._now = now
        self._lock = threading.Lock()
        self._all: dict[ContainerId, _Namespace] = {}
        self._joined: dict[ContainerId, ContainerId] = {}
        """The holder behind each container that joined."""
        self._replaced_at = float("-inf")

    # --- runs come and go ---------------------------------------------------------------------------------------

    def take(self, series: str) -> ContainerId | None:
        """Lend a namespace to a run of *series*: one of its own, or a fresh one; None when there is none now."""
        with self._lock:
            known = [each for each in self._all.values() if each.is_used and each.series == series]
            fitting = known or [each for each in self._all.values() if each.is_fresh]
            if not fitting:
                return None
            fitting[0].taken, fitting[0].series = True, series
            return fitting[0].holder

    def give_back(self, holder: ContainerId) -> None:
        """Take a namespace back that nobody joined."""
        with self._lock:
            self._freed(holder)

    def joined(self, container: ContainerId, holder: ContainerId) -> None:
        """Note which container is in a namespace."""
        with self._lock:
            self._joined[container] = holder

    def left(self, container: ContainerId, *, ended_well: bool) -> bool:
        """Take the namespace back that a container was in, if it was in one; nobody gets it when that did not end well."""
        with self._lock:
            holder = self._joined.pop(container, None)
            if holder is None:
                return False
            if holder in self._all and not ended_well:
                self._all[holder].series = _NOBODY
            self._freed(holder)
            return True

    def _freed(self, holder: ContainerId) -> None:
        if holder in self._all:
            self._all[holder].taken = False
            self._all[holder].free_since = self._now()

    def has_joined(self, container: ContainerId) -> bool:
        """Tell whether a container is in a namespace of these books."""
        with self._lock:
            return container in self._joined

    # --- namespaces come and go ---------------------------------------------------------------------------------

    def take_over(self, joined: Mapping[ContainerId, ContainerId]) -> None:
        """Begin with the namespaces of runs that went on without an agent: nobody gets these after them."""
        with self._lock:
            self._joined = dict(joined)
            self._all = {holder: _Namespace(holder, _NOBODY, taken=True) for holder in joined.values()}

    @property
    def holders(self) -> frozenset[ContainerId]:
        """Give the holders of all namespaces."""
        with self._lock:
            return frozenset(self._all)

    @property
    def fresh(self) -> ContainerId | None:
        """Give a namespace that no run was in; None when there is none."""
        with self._lock:
            return next((each.holder for each in self._all.values() if each.is_fresh), None)

    def is_one_wanted(self) -> bool:
        """Tell whether a namespace is to be made: there is room, and no fresh one."""
        with self._lock:
            return self._has_no_fresh() and len(self._all) < self._most

    def add(self, holder: ContainerId) -> None:
        """Take a new namespace in."""
        with self._lock:
            self._all[holder] = _Namespace(holder, free_since=self._now())

    def let_go(self) -> list[ContainerId]:
        """Drop what waited too long or is for nobody, and one more when only that makes room for a fresh one."""
        with self._lock:
            used = sorted(
                (each for each in self._all.values() if each.is_used), key=lambda each: each.free_since
            )
            now = self._now()
            going = [
                each for each in used if each.series == _NOBODY or each.free_since <= now - UNUSED_SECONDS
            ]
            if not going and used and self._has_no_room() and now >= self._replaced_at + REPLACING_SECONDS:
                self._replaced_at = now
                going = used[:1]
            return self._dropped([each.holder for each in going])

    def _has_no_room(self) -> bool:
        return self._has_no_fresh() and len(self._all) >= self._most

    def _has_no_fresh(self) -> bool:
        return not any(each.is_fresh for each in self._all.values())

    def drop_all_but(self, running: Collection[ContainerId]) -> list[ContainerId]:
        """Drop every namespace whose holder does not run any more, whoever is in it."""
        with self._lock:
            dropped = self._dropped([holder for holder in self._all if holder not in running])
            self._joined = {run: holder for run, holder in self._joined.items() if holder in self._all}
            return dropped

    def close(self) -> list[ContainerId]:
        """Drop every namespace that no run is in, and take in no more."""
        with self._lock:
            self._most = 0
            return self._dropped([each.holder for each in self._all.values() if not each.taken])

    def _dropped(self, holders: list[ContainerId]) -> list[ContainerId]:
        for holder in holders:
            del self._all[holder]
        return holders
