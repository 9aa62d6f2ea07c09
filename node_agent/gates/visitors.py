"""Which run stands behind an address of the isolated network at this moment, and may it come in.

Addresses are given to the next container as soon as one has ended. So nothing is kept: a visitor is judged by a listing
of the engine that began after the visitor came. Visitors that wait at the same time share one.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from node_agent.domain.run import RunId

LOOKS = 8
PAUSE = 0.25
"""A container may connect before the engine lists it, and just after a start the runs may not be loaded yet."""
PACE = 0.05
"""Between two listings, so that whoever knocks all the time does not keep the engine busy."""

Listing = Mapping[str, RunId]


class Visitors:
    """Judges who comes in; belongs to one event loop."""

    def __init__(
        self,
        *,
        runs_at: Callable[[], Listing],
        asked: Callable[[RunId, str], bool],
        pause: float = PAUSE,
    ) -> None:
        self._runs_at = runs_at
        self._asked = asked
        self._pause = pause
        self._engine = ThreadPoolExecutor(1, "gates-engine")
        self._one_at_a_time = asyncio.Lock()
        self._last = 0.0
        self._next: asyncio.Task[Listing] | None = None

    async def run_at(self, address: str, *, label: str) -> RunId | None:
        """Find the run at *address* that asked for *label*; None when there is none. Raises EngineUnreachable."""
        for look in range(LOOKS):
            run_id = (await self._listing()).get(address)
            if run_id is not None and self._asked(run_id, label):
                return run_id
            if look + 1 < LOOKS:
                await asyncio.sleep(self._pause)
        return None

    def close(self) -> None:
        """Let the thread go."""
        self._engine.shutdown(wait=False, cancel_futures=True)

    async def _listing(self) -> Listing:
        """Give a listing that has not begun yet."""
        if self._next is None:
            self._next = asyncio.create_task(self._listed())
        return await asyncio.shield(self._next)

    async def _listed(self) -> Listing:
        loop = asyncio.get_running_loop()
        async with self._one_at_a_time:
            await asyncio.sleep(max(0.0, self._last + PACE - loop.time()))
            self._next = None  # whoever comes from now on needs a later one
            try:
                return await loop.run_in_executor(self._engine, self._runs_at)
            finally:
                self._last = loop.time()
