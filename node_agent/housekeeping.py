"""What is tidied up while the agent works: strays, runs that are long over, and the notes on images that we pulled.

Belongs to the control thread and waits for nothing: a search for strays runs elsewhere, and the journal forgets a bounded
number of runs at once. Must not know what is searched for, nor when its turns come.
"""

from collections.abc import Callable

import structlog

from node_agent.availability import JOURNAL, Outside
from node_agent.domain.keeping import PulledImage
from node_agent.domain.messages import ImagePulled, SweepDone
from node_agent.domain.ports import Clock, Journal
from node_agent.errors import DiskUnwritable, NodeAgentError, Transient
from node_agent.progress import Progress

log = structlog.get_logger()

SWEEP = "sweep"
"""Who misses the disk when a search for strays does."""


class Housekeeping:
    """Tidies up behind *progress*; *begin_sweep* has strays looked for, and a SweepDone comes back."""

    def __init__(
        self,
        *,
        progress: Progress,
        journal: Journal,
        outside: Outside,
        begin_sweep: Callable[[], None],
        ages: Clock,
        keep_runs: float,
    ) -> None:
        self._progress = progress
        self._journal = journal
        self._outside = outside
        self._begin_sweep = begin_sweep
        self._ages = ages
        self._keep_runs = keep_runs
        self._swept = False
        self._sweeping = False
        self._again = False
        self._pruning = False
        self._unnoted: list[PulledImage] = []
        self.sweeps = 0
        """Searches for strays that ended."""

    @property
    def is_busy(self) -> bool:
        """Tell whether strays are looked for now, or the journal has more to forget."""
        return self._sweeping or self._pruning

    # --- strays -----------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Have strays looked for, unless that goes on already."""
        self._swept = True
        if self._sweeping:
            return
        self._sweeping = True
        self._begin_sweep()

    def sweep_once(self) -> None:
        """Have strays looked for if that never went well so far."""
        if not self._swept:
            self.sweep()

    def sweep_anew(self) -> None:
        """Have strays looked for from now on; a search under way may have passed by what is meant, so another follows."""
        self._again = self._sweeping
        self.sweep()

    def sweep_done(self, message: SweepDone) -> None:
        """Take in what came of a search."""
        self._sweeping = False
        self.sweeps += 1
        if message.left_images:
            self._journal.forget_images(message.left_images)
        self._say_swept(message)
        if self._again:
            self._again = False
            self.sweep()

    def _say_swept(self, message: SweepDone) -> None:
        if not isinstance(message.error, DiskUnwritable):
            self._progress.disk_served(SWEEP)
        if isinstance(message.error, NodeAgentError):
            self._outside.trouble(message.error, of=SWEEP)
            self._swept = False
        elif message.error is not None:
            log.error("sweep_bug", exc_info=message.error)
        elif message.removed:
            log.info("strays_removed", count=message.removed)

    # --- the journal ------------------------------------------------------------------------------------------

    def prune(self) -> bool:
        """Forget some of the runs that are long over; True when there may be more, for a moment later."""
        self._pruning = False
        try:
            self._note_images()
            pruned = self._progress.prune(before=self._ages.now() - self._keep_runs)
        except Transient as error:
            self._outside.trouble(error)
            return False
        self._progress.disk_served(JOURNAL)
        if pruned:
            self._pruning = True
            log.info("journal_pruned", runs=pruned)
        return self._pruning

    def image_pulled(self, message: ImagePulled) -> None:
        """Note that an image came by us."""
        self._unnoted.append(message.image)
        self._note_images()

    def _note_images(self) -> None:
        """Write down which images came by us; what the disk has no room for is tried again before the next pruning."""
        while self._unnoted:
            self._journal.note_image(self._unnoted[0])
            self._unnoted.pop(0)
