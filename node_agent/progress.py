"""How runs move: which step is next, what came of the last one, when to look again.

Everything here happens in the control thread and waits for nothing. Only here are runs written down in the journal.
"""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, replace
from math import inf

import structlog

from node_agent.availability import JOURNAL, Outside
from node_agent.domain.jobstatus import number_of
from node_agent.domain.lifecycle import (
    Advance,
    StepResult,
    Wait,
    advance,
    next_step,
    status_of,
)
from node_agent.domain.mark import seconds_since
from node_agent.domain.messages import RunsListed, StepDone
from node_agent.domain.ports import Channel, Clock, Journal, OpenRun, StatusChange
from node_agent.domain.run import Outcome, Run, RunId, State
from node_agent.domain.task import TaskId
from node_agent.domain.turns import MAX_NESTING, depth_of
from node_agent.errors import (
    AccessDenied,
    DiskUnwritable,
    EngineDiskFull,
    RegistryUnreachable,
    RunClosed,
    RunFailed,
    ServerUnreachable,
    Transient,
)
from node_agent.outbox import Outbox
from node_agent.phases import PhaseWatch
from node_agent.quota import Quota
from node_agent.runlog import log_of
from node_agent.runtable import RunTable
from node_agent.stuck import ABANDONED, KILL_AFTER_SECONDS, KILL_AGAIN_SECONDS, StuckStep
from node_agent.waiting import WaitingRoom

log = structlog.get_logger()

MAX_BACKOFF_SECONDS = 30.0
MAX_DISK_SECONDS = 4.0  # to try the state directory again costs nobody else anything
MAX_REGISTRY_SECONDS = 4.0  # nothing but the next try finds out that a registry is back
SETTLE_SECONDS = 1.0
RUN_TIME_GRACE_SECONDS = 10.0  # the run's own look at its time comes first, and says more
_HAS_CONTAINER = frozenset({State.PULLED, State.CREATED, State.RUNNING})

_ENGINE_STEPS = frozenset({"pull", "create", "start", "observe", "remove"})
"""Steps that end well only when the engine answered."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    step: str
    since: float


class Progress:
    """Brings every run of *runs* closer to its end, one step at a time."""

    def __init__(
        self,
        *,
        runs: RunTable,
        journal: Journal,
        channel: Channel,
        clock: Clock,
        outside: Outside,
        submit: Callable[[str, Run], None],
        kill: Callable[[Run], None],
        outbox: Outbox,
        room: WaitingRoom,
        phases: PhaseWatch,
    ) -> None:
        self._runs = runs
        self._journal = journal
        self._channel = channel
        self._clock = clock
        self._outside = outside
        self._submit = submit
        self._kill = kill
        self._outbox = outbox
        self._room = room
        self._phases = phases
        self._learned_at: dict[RunId, float] = {}
        self._ended_at: dict[RunId, float] = {}
        self._due: dict[RunId, float] = {}
        self._busy: dict[RunId, _InFlight] = {}
        self._abandoned: set[tuple[RunId, str]] = set()
        self._stuck: dict[tuple[RunId, str], StuckStep] = {}
        self._killed_at: dict[RunId, float] = {}
        self._retries: dict[RunId, int] = {}
        self._suspects: set[RunId] = set()
        self._listed: frozenset[RunId] | None = None
        self._quiet: set[RunId] = set()
        self._report_after: dict[RunId, float] = {}
        self.ended = 0
        """Runs ended since the start."""

    def load(self) -> None:
        """Take up every open run of the journal."""
        for run in self._journal.load():
            self._runs.keep(self._counted(run))
            self._learned_at[run.id] = float("-inf")
            self._due[run.id] = 0.0
        if self._runs:
            log.info("runs_taken_up", runs=len(self._runs))

    def _counted(self, run: Run) -> Run:
        """Give a run something to count its time from, when the machine started anew or an older agent wrote it down."""
        now = self._clock.mark()
        known = run.entered is not None and run.entered.boot == now.boot
        return run if known else replace(run, entered=now)

    @property
    def is_busy(self) -> bool:
        """Tell whether any step is in flight."""
        return bool(self._busy)

    def next_at(self) -> float | None:
        """Say when a run that waits for time is due; None when none does."""
        now = self._clock.monotonic()
        waking = [at for run_id, at in self._due.items() if run_id not in self._busy and at > now]
        paused = self._outbox.next_at(now)
        return min(waking if paused is None else [*waking, paused], default=None)

    # --- choosing steps ---------------------------------------------------------------------------------------

    def dispatch(self, *, draining: bool) -> None:
        """Set the next step of every run in motion that is due; while draining, none that would begin."""
        now = self._clock.monotonic()
        for run_id in sorted(
            run_id for run_id, at in self._due.items() if at <= now and run_id not in self._busy
        ):
            run = self._runs[run_id]
            step = self._choose(run)
            if step == "report" and now < self._report_after.get(run_id, now):
                continue
            del self._due[run_id]
            if step == "admit":
                self._room.enter(run)
            elif step == "report" and not run.is_job:
                self._outbox.enter(run)
            elif step is not None:
                self._room.leave(run_id)
                self._set_in_motion(step, run)
        for run in self._outbox.begin(now):
            self._set_in_motion("report", run)
        for run in self._room.begin_awaited() if draining else self._room.begin():
            self._set_in_motion("admit", run)

    def _set_in_motion(self, step: str, run: Run) -> None:
        self._busy[run.id] = _InFlight(step, self._clock.monotonic())
        self._submit(step, run)

    def _choose(self, run: Run) -> str | None:
        if run.id in self._suspects and run.ending is None and run.state < State.FINISHED:
            return "verify"
        return next_step(run, may_announce=run.id not in self._quiet)

    # --- what came of a step ----------------------------------------------------------------------------------

    def step_done(self, done: StepDone) -> None:
        """Take in what came of a step."""
        if self._came_late(done):
            return
        self._busy.pop(done.run_id, None)
        self._room.leave(done.run_id)
        run = self._runs[done.run_id]
        if done.step == "report":
            self._outbox.came_back(run.id)
        if done.step == "verify":
            self._suspects.discard(run.id)
        if done.error is None:
            self._step_succeeded(run, done.step, done.result)
        else:
            self._step_failed(run, done.step, done.error)
        if not isinstance(done.error, DiskUnwritable):
            self.disk_served(run.id)

    def _came_late(self, done: StepDone) -> bool:
        """Check whether the run was taken further without this step, whose result must not count then."""
        key = (done.run_id, done.step)
        in_flight = self._busy.get(done.run_id)
        if key not in self._abandoned or (in_flight is not None and in_flight.step == done.step):
            return False
        self._abandoned.discard(key)
        log.info("step_came_late", run_id=done.run_id, step=done.step)
        return True

    def watch(self, stuck: Collection[StuckStep], *, run_time: float) -> None:
        """Enforce what must not wait for a step: run time, the end of a container, and going on without a stuck step."""
        self._note_stuck(stuck)
        self._end_overdue(run_time)
        now = self._clock.monotonic()
        for run_id, in_flight in list(self._busy.items()):
            run = self._runs.get(run_id)
            if run is None or run.ending is None or in_flight.step not in ABANDONED:
                continue
            if now - in_flight.since > KILL_AFTER_SECONDS:
                self._kill_now(run, now)
            if (run_id, in_flight.step) in self._stuck:
                self._abandon(run, in_flight.step)

    def _note_stuck(self, stuck: Collection[StuckStep]) -> None:
        before = self._stuck
        self._stuck = {(step.run_id, step.step): step for step in stuck}
        for key in self._stuck.keys() - before.keys():
            found = self._stuck[key]
            log.warning("step_stuck", run_id=found.run_id, step=found.step, seconds=round(found.seconds))

    @property
    def stuck_steps(self) -> tuple[str, ...]:
        """Return what is said of each step that takes longer than its bound."""
        return tuple(str(step) for step in self._stuck.values())

    def _end_overdue(self, run_time: float) -> None:
        """End runs whose time is over although no step said so: their own look at the time hangs."""
        now = self._clock.mark()
        for run in self._runs.begun():
            spent = seconds_since(run.entered, now=now)
            if (
                run.state is State.RUNNING
                and run.ending is None
                and spent > run_time + RUN_TIME_GRACE_SECONDS
            ):
                reason = (
                    f"The algorithm was stopped after {spent:.0f} seconds; this node allows {run_time:.0f}."
                )
                self.end(run, Outcome.TIME_LIMIT, reason)

    def _kill_now(self, run: Run, now: float) -> None:
        if run.state in _HAS_CONTAINER and now - self._killed_at.get(run.id, -inf) > KILL_AGAIN_SECONDS:
            self._killed_at[run.id] = now
            self._kill(run)

    def _abandon(self, run: Run, step: str) -> None:
        """Go on without a step that hangs; whatever comes of it later is ignored."""
        self._abandoned.add((run.id, step))
        self._busy.pop(run.id, None)
        self._room.leave(run.id)
        self.make_due(run.id)

    def _step_succeeded(self, run: Run, step: str, result: StepResult | None) -> None:
        self._phases.note(run.id, "")
        if step in _ENGINE_STEPS:
            self._outside.engine.back()
        if step != "announce":
            self._quiet.discard(run.id)
        if isinstance(result, Advance):
            self._move(run, result)
        elif isinstance(result, Wait):
            self.record(run, replace(run, **result.facts))
            if result.seconds is not None:
                self.make_due(run.id, after=result.seconds)
        # only now: on a full disk nothing can be written down, and the pauses must grow
        self._retries.pop(run.id, None)
        if step == "report" and run.outcome is not Outcome.CLOSED and not run.is_job:
            self.server_answered()

    def _move(self, run: Run, step: Advance) -> None:
        # The run may have got an ending while the step was under way: keep it.
        moved = replace(advance(run, step), entered=self._clock.mark())
        self.record(run, moved)
        log_of(moved).info(
            "run_advanced",
            to=moved.state.name.lower(),
            status=str(status_of(moved)),
            status_code=number_of(moved),
            **_what_is_new(moved),
        )
        self.make_due(run.id)
        if moved.state is State.REPORTED:
            self._outbox.forget(moved.id)
        if moved.state is State.REMOVED:
            self._forget(moved)

    def _step_failed(self, run: Run, step: str, error: BaseException) -> None:
        if isinstance(error, Transient):
            self.try_again(run, step, error)
        elif isinstance(error, AccessDenied):
            self.try_again(run, step, ServerUnreachable(str(error)))
        elif run.state >= State.FINISHED or step == "stop":
            self._after_the_ending(run, step, error)
        elif isinstance(error, RunClosed):
            self.end(run, Outcome.CLOSED, str(error))
        elif isinstance(error, RunFailed):
            self.end(run, error.outcome, str(error))
        else:
            log_of(run).error("step_bug", step=step, exc_info=error)
            self.end(
                run,
                Outcome.BUG,
                f"The node failed in an unexpected way ({type(error).__name__}); its log says more.",
            )

    def _after_the_ending(self, run: Run, step: str, error: BaseException) -> None:
        """How the run ends is decided: what the server refuses for good is over, everything else is tried again."""
        if step == "report" and isinstance(error, RunClosed):
            log_of(run).info("report_refused", reason=str(error))
            self._move(run, Advance(State.REPORTED, {"refusal": str(error)}))
            self.server_answered()
            return
        log_of(run).error("step_bug", step=step, exc_info=error)
        self.try_again(run, step, Transient(str(error)))

    def end(self, run: Run, ending: Outcome, reason: str) -> None:
        """Decide how a run ends; the stop step then does it."""
        if run.ending is None and run.state < State.FINISHED:
            log_of(run).info("run_ending", outcome=str(ending), reason=reason)
            self.record(run, replace(run, ending=ending, reason=reason))
        self.make_due(run.id)

    def try_again(self, run: Run, step: str, error: Transient) -> None:
        """Repeat a step later; the pauses grow."""
        if step == "announce":
            self._quiet.add(run.id)  # a courtesy must not hold the run up
        else:
            self._phases.note(run.id, error.message)
        if step == "report" and not run.is_job:
            self._outbox.failed(run.id, str(error), now=self._clock.monotonic())
        self._outside.trouble(error, of=run.id)
        tries = self._retries[run.id] = self._retries.get(run.id, 0) + 1
        seconds = 0.0 if step == "announce" else _pause_after(error, tries)
        log_of(run).debug("step_postponed", step=step, tries=tries, seconds=seconds, reason=str(error))
        self.make_due(run.id, after=seconds)

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def record(self, before: Run, after: Run) -> None:
        """Write down that a run changed, and tell who may want to know."""
        if after == before:
            return
        self._journal.update(before, after, at=self._clock.now())
        self.disk_served(JOURNAL)
        self._runs.keep(after)
        if after.announced is not before.announced and not after.is_job:
            self._channel.tell_status(StatusChange(run=after, status=after.announced))

    def _forget(self, run: Run) -> None:
        self.ended += 1
        self._ended_at[run.id] = self._clock.monotonic()
        self._runs.drop(run.id)
        for known in (self._learned_at, self._due, self._retries, self._report_after, self._killed_at):
            known.pop(run.id, None)
        self._outbox.forget(run.id)
        self._quiet.discard(run.id)
        self._suspects.discard(run.id)

    def make_due(self, run_id: RunId, *, after: float = 0.0) -> None:
        """Have the run looked at; an earlier wish stands, also one that came while a step was in flight."""
        if self._runs.is_open(run_id):
            at = self._clock.monotonic() + after
            self._due[run_id] = min(at, self._due.get(run_id, at))

    def hold_report(self, run_id: RunId) -> None:
        """Let the server take in what was just sent of a run's log: coming late, it would replace the final one."""
        self._report_after[run_id] = self._clock.monotonic() + SETTLE_SECONDS

    def server_answered(self) -> None:
        """Note that the server answers; if that is news, everything is tried again."""
        if self._outside.server.back():
            self._outbox.hurry()
            self.try_everything_again()
            self._channel.hurry()

    def disk_served(self, whom: Hashable) -> None:
        """Note that *whom* got everything written; if nobody misses anything now, everything is tried again."""
        if self._outside.disk.served(whom):
            self.try_everything_again()

    def owed_bytes(self) -> int:
        """Say how large results and logs of all owed reports are."""
        return sum(self._outbox.size(run.id) for run in self._owed())

    def _owed(self) -> list[Run]:
        return [run for run in self._runs.begun() if run.state is State.FINISHED and not run.is_job]

    @property
    def owed_problem(self) -> str:
        """Why a report that was tried has not arrived; empty when all that were tried did."""
        return self._outbox.problem

    def next_report_at(self) -> float | None:
        """Say when a report is tried next, in seconds since the epoch; None when none waits, or one is on its way."""
        if self._outbox.is_sending:
            return None
        now = self._clock.monotonic()
        times = [self._due.get(run.id, self._outbox.next_at(now)) for run in self._owed()]
        soonest = min((at for at in times if at is not None), default=None)
        return None if soonest is None else self._clock.now() + max(0.0, soonest - now)

    def try_everything_again(self) -> None:
        """Forget every pause: what was away is back."""
        self.make_due_where(lambda run: run.id in self._retries and self._outbox.may_hurry(run.id))

    def make_due_where(self, condition: Callable[[Run], bool]) -> None:
        """Have every run looked at for which *condition* holds."""
        for run in self._runs:
            if condition(run):
                self.make_due(run.id)

    @property
    def was_listed(self) -> bool:
        """Tell whether the server has told all its open runs since the start."""
        return self._listed is not None

    def prune(self, *, before: float) -> int:
        """Have the journal forget runs that were over before that time, and say how many it forgot.

        What the server lists now is never forgotten: it would be taken for new and done a second time.
        """
        return 0 if self._listed is None else self._journal.prune(before=before, spare=self._listed)

    # --- what the server lists --------------------------------------------------------------------------------

    def take_in_list(self, message: RunsListed) -> None:
        """Take in what is new in a list of open runs and, if it is complete, doubt what it does not show."""
        quota = Quota(self._runs)
        for listed in message.runs:
            known = self._runs.get(listed.id)
            if known is None:
                if quota.allows(listed):
                    self.take_in(listed, asked_at=message.asked_at)
            elif known.task.id != listed.task.id and not listed.fault:
                self._displace(known)
        # No later list can have been asked for before this one.
        self._ended_at = {run: at for run, at in self._ended_at.items() if at >= message.asked_at}
        if message.complete:
            quota.tell()
            self._listed = frozenset(listed.id for listed in message.runs)
            self._suspect_absent(self._listed, message.asked_at)

    def _displace(self, run: Run) -> None:
        """End a run whose number the server has given to a run of another task: nobody waits for this one any more.

        That happens when a server is restored from an older backup. What the old run found must not reach whoever asks now.
        """
        reason = "The server has given the number of this run to a run of another task."
        if run.state < State.FINISHED:
            self.end(run, Outcome.CLOSED, reason)
        elif run.state is State.FINISHED and run.id not in self._busy:
            log_of(run).warning("report_refused", reason=reason)
            self._move(run, Advance(State.REPORTED, {"refusal": reason}))

    def take_in(self, listed: OpenRun, *, asked_at: float) -> None:
        """Take in a run that is new here, as of a moment after *asked_at*."""
        run = Run(
            id=listed.id,
            task=listed.task,
            received_at=self._clock.now(),
            entered=self._clock.mark(),
            fault=listed.fault,
            input_blob=listed.input_blob,
            input_digest=listed.input_digest,
            announced=listed.status,
        )
        if not self._entered(run, listed, asked_at=asked_at):
            log.debug("run_listed_after_its_end", run_id=run.id)
            return
        self._learned_at[run.id] = self._clock.monotonic()
        self._runs.keep(run)
        self.make_due(run.id)
        log_of(run).info("run_received", parent_id=run.task.parent_id)
        if run.task.parent_id is not None:
            self._note_subtask_of(run.task.parent_id)
            self._refuse_if_too_deep(run)

    def _refuse_if_too_deep(self, run: Run) -> None:
        depth = depth_of(run, self._runs.of_task)
        if depth is not None and depth > MAX_NESTING:
            self.end(
                run,
                Outcome.NOT_ALLOWED,
                f"The task is nested {depth} levels deep; this node allows {MAX_NESTING}.",
            )

    def _note_subtask_of(self, task: TaskId) -> None:
        # Known already, unless the agent died between the subtask's creation and its own note of it.
        parent = self._runs.of_task(task)
        if parent is not None:
            self.lend_slot(parent)

    def lend_slot(self, run: Run) -> None:
        """Record that a run has subtasks: while it waits for them and uses no CPU, its slot is free."""
        if not run.has_subtasks:
            self.record(run, replace(run, has_subtasks=True))
            log_of(run).info("slot_lent_to_subtasks")

    def _entered(self, run: Run, listed: OpenRun, *, asked_at: float) -> bool:
        """Record a listed run; False when it is one that is over, shown by a list that was overtaken."""
        if self._journal.insert(run):
            return True
        # Some databases give the number of a deleted run to the next one. The old run was claimed, this one is not.
        is_another = listed.claimed_at is None and self._ended_at.get(run.id, float("-inf")) < asked_at
        if is_another:
            self._journal.renew(run, at=self._clock.now())
        return is_another

    def _suspect_absent(self, listed: Collection[RunId], asked_at: float) -> None:
        """Have the server asked about each run that the complete list does not show: it may be closed.

        The list may have shifted between two pages, so that absence alone proves nothing.
        """
        for run in self._runs:
            going = run.ending is None and run.state < State.FINISHED and not run.is_job
            if going and run.id not in listed and self._learned_at[run.id] < asked_at:
                self._suspects.add(run.id)
                self.make_due(run.id)


def _pause_after(error: Transient, tries: int) -> float:
    """Say how long to wait before the next try; never less than whoever refused has asked for."""
    return max(error.after, min(_longest_pause(error), 0.5 * 2.0 ** min(tries, 10)))


def _longest_pause(error: Transient) -> float:
    if isinstance(error, RegistryUnreachable):
        return MAX_REGISTRY_SECONDS
    if isinstance(error, DiskUnwritable) and not isinstance(error, EngineDiskFull):
        return MAX_DISK_SECONDS
    return MAX_BACKOFF_SECONDS


def _what_is_new(run: Run) -> dict[str, object]:
    """Pick the facts worth a log line in the state just reached."""
    match run.state:
        case State.PULLED:
            return {"digest": run.digest or run.image_id}
        case State.CAPTURED:
            return {"exit_code": run.exit_code}
        case State.FINISHED:
            return {"outcome": str(run.outcome), "reason": run.reason or None}
    return {}
