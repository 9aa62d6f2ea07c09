"""The control loop: one thread that alone decides, writes the journal and speaks on the socket.

It never waits for network or engine. Messages say which run to look at; a pool of threads does one step of one run at a
time and posts what came of it. Restarting is the normal path: after a start every open run is simply looked at again.
"""

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from node_agent.availability import Availability
from node_agent.domain.lifecycle import Advance, StepResult, Wait, advance, code_of, next_step, status_of
from node_agent.domain.messages import (
    ContainerChanged,
    EngineLost,
    EngineWatched,
    KillRequested,
    ListingFailed,
    Message,
    NodeFactsReady,
    PullProgressed,
    RunsListed,
    ServerOffline,
    ServerOnline,
    StepDone,
    StopAsked,
    StopKind,
    SubtaskCreated,
    SweepDone,
    TaskHinted,
)
from node_agent.domain.ports import Channel, Clock, Journal, OpenRun, StatusChange
from node_agent.domain.run import Outcome, Run, RunId, State
from node_agent.domain.task import TaskId
from node_agent.errors import (
    AccessDenied,
    DiskFull,
    EngineUnreachable,
    NodeAgentError,
    RunClosed,
    RunFailed,
    ServerUnreachable,
    Transient,
)
from node_agent.runtable import RunTable
from node_agent.timetable import Timetable

log = structlog.get_logger()

PING_SECONDS = 30.0  # the server forgets a node after 65 s without a sign of life
POLL_SECONDS = 30.0
RELIST_SECONDS = 2.0  # after a listing that failed
OBSERVE_SECONDS = 5.0
SWEEP_SECONDS = 600.0
HEARTBEAT_SECONDS = 300.0
PRESENCE_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0
GRACE_SECONDS = 10.0  # for steps in flight when the agent is asked to stop

_ENGINE_STEPS = frozenset({"pull", "create", "start", "observe", "stop", "remove"})
"""Steps that end well only when the engine answered."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the agent would say of itself now."""

    online: bool
    server_problem: str
    engine_problem: str
    waiting: int
    working: int
    owed: int
    oldest_owed_at: float | None
    finished: int
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What the control loop sets in motion; none of these calls waits."""

    submit: Callable[[str, Run], None]
    """Do one step of one run on the pool; a StepDone comes back."""
    list_runs: Callable[[TaskId | None], None]
    """Ask the server for open runs; a RunsListed or ListingFailed comes back."""
    sweep: Callable[[], None]
    """Remove containers and folders that belong to no open run; a SweepDone comes back."""
    show: Callable[[Snapshot], None]
    """Write the sign of life."""


class Agent:
    """What is done about the runs; *runs* is filled from the journal by `load`."""

    def __init__(
        self,
        *,
        mailbox: "queue.SimpleQueue[Message]",
        runs: RunTable,
        journal: Journal,
        channel: Channel,
        hands: Hands,
        clock: Clock,
        concurrent_runs: int,
    ) -> None:
        self._mailbox = mailbox
        self._journal = journal
        self._channel = channel
        self._hands = hands
        self._clock = clock
        self._concurrent_runs = concurrent_runs
        self._runs = runs
        self._learned_at: dict[RunId, float] = {}
        self._ended_at: dict[RunId, float] = {}
        self._due: dict[RunId, float] = {}
        self._busy: set[RunId] = set()
        self._retries: dict[RunId, int] = {}
        self._suspects: set[RunId] = set()
        self._quiet: set[RunId] = set()
        self._node_facts: Mapping[str, object] = {}
        self._server = Availability(lost_event="server_lost", back_event="server_back")
        self._engine = Availability(lost_event="engine_lost", back_event="engine_back")
        self._online = False
        self._swept = False
        self._finished = 0
        self._stopping: StopKind | None = None
        self._stop_by = 0.0
        self._timetable = Timetable(
            {
                self._ping: PING_SECONDS,
                self._poll: POLL_SECONDS,
                self._look_at_running: OBSERVE_SECONDS,
                self._sweep: SWEEP_SECONDS,
                self._heartbeat: HEARTBEAT_SECONDS,
                self._show: PRESENCE_SECONDS,
            },
            start=clock.monotonic(),
        )
        self._reactions: Mapping[type, Callable[..., None]] = {
            ServerOnline: self._on_server_online,
            ServerOffline: self._on_server_offline,
            TaskHinted: self._on_task_hinted,
            KillRequested: self._on_kill_requested,
            RunsListed: self._on_runs_listed,
            ListingFailed: self._on_listing_failed,
            ContainerChanged: self._on_container_changed,
            EngineWatched: self._on_engine_watched,
            EngineLost: self._on_engine_lost,
            SubtaskCreated: self._on_subtask_created,
            PullProgressed: self._on_pull_progressed,
            StepDone: self._on_step_done,
            SweepDone: self._on_sweep_done,
            NodeFactsReady: self._on_node_facts_ready,
            StopAsked: self._on_stop_asked,
        }

    # --- the loop ---------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Take up every open run of the journal."""
        for run in self._journal.load():
            self._runs.keep(run)
            self._learned_at[run.id] = float("-inf")
            self._due[run.id] = 0.0
        if self._runs:
            log.info("runs_taken_up", runs=len(self._runs))

    def run(self) -> None:
        """Work until asked to stop and nothing is in flight."""
        while not self._is_over():
            self.turn(self._seconds_to_next())

    def turn(self, timeout: float) -> None:
        """Take in what came, let time do its part, set the next steps in motion."""
        for message in self._received(timeout):
            self._react(message)
        self._timetable.run_due(self._clock.monotonic())
        self._dispatch()

    def _react(self, message: Message) -> None:
        try:
            self._reactions[type(message)](message)
        except DiskFull as error:
            # The journal refused, so nothing is decided yet: a step is repeated, a listing shows the rest again.
            if isinstance(message, StepDone):
                self._try_again(self._runs[message.run_id], message.step, error)
            else:
                self._note_trouble(error)
                self._timetable.hasten(self._poll, to=self._clock.monotonic() + RELIST_SECONDS)

    def _received(self, timeout: float) -> list[Message]:
        try:
            messages = [self._mailbox.get(timeout=timeout)] if timeout > 0 else []
        except queue.Empty:
            return []
        while True:
            try:
                messages.append(self._mailbox.get_nowait())
            except queue.Empty:
                return messages

    def _seconds_to_next(self) -> float:
        now = self._clock.monotonic()
        waking = [at for run_id, at in self._due.items() if run_id not in self._busy and at > now]
        return max(0.001, min([self._timetable.next_at(), *waking]) - now)

    def _is_over(self) -> bool:
        if self._stopping is None:
            return False
        if self._stopping is StopKind.DRAIN:
            return all(run.state is State.RECEIVED for run in self._runs) and not self._busy
        return not self._busy or self._clock.monotonic() >= self._stop_by

    # --- choosing steps ---------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._stopping in {StopKind.STOP, StopKind.NOW}:
            return
        now = self._clock.monotonic()
        free = self._free_slots()
        for run_id in sorted(
            run_id for run_id, at in self._due.items() if at <= now and run_id not in self._busy
        ):
            run = self._runs[run_id]
            step = self._choose(run)
            if step == "admit":
                if free <= 0 or not self._may_begin(run):
                    continue
                free -= 1
            del self._due[run_id]
            if step is not None:
                self._busy.add(run_id)
                self._hands.submit(step, run)

    def _may_begin(self, run: Run) -> bool:
        if self._stopping is None:
            return True
        # While draining only what running work waits for: without its subtasks it would never end.
        return any(
            other.task.id == run.task.parent_id and other.state > State.RECEIVED for other in self._runs
        )

    def _choose(self, run: Run) -> str | None:
        if run.id in self._suspects and run.ending is None and run.state < State.FINISHED:
            return "verify"
        return next_step(run, may_announce=run.id not in self._quiet)

    def _free_slots(self) -> int:
        return self._concurrent_runs - self._runs.count(self._holds_slot)

    def _holds_slot(self, run: Run) -> bool:
        if run.state is State.RECEIVED:
            return run.id in self._busy
        # A parent waits for its subtasks: if it held a slot, they might never get one.
        return State.ADMITTED <= run.state <= State.RUNNING and not run.has_subtasks

    # --- what came of a step ----------------------------------------------------------------------------------

    def _on_step_done(self, done: StepDone) -> None:
        self._busy.discard(done.run_id)
        run = self._runs[done.run_id]
        if done.step == "verify":
            self._suspects.discard(run.id)
        if done.error is None:
            self._step_succeeded(run, done.step, done.result)
        else:
            self._step_failed(run, done.step, done.error)

    def _step_succeeded(self, run: Run, step: str, result: StepResult | None) -> None:
        self._retries.pop(run.id, None)
        if step in _ENGINE_STEPS:
            self._engine.back()
        if step != "announce":
            self._quiet.discard(run.id)
        if isinstance(result, Advance):
            self._move(run, result)
        elif isinstance(result, Wait):
            self._record(run, replace(run, **result.facts))
            if result.seconds is not None:
                self._make_due(run.id, after=result.seconds)

    def _move(self, run: Run, step: Advance) -> None:
        # The run may have got an ending while the step was under way: keep it.
        moved = advance(run, step)
        self._record(run, moved)
        _log_of(moved).info(
            "run_advanced",
            to=moved.state.name.lower(),
            status=str(status_of(moved)),
            status_code=code_of(moved),
            **_what_is_new(moved),
        )
        self._make_due(run.id)
        if moved.state is State.REMOVED:
            self._forget(moved)

    def _step_failed(self, run: Run, step: str, error: BaseException) -> None:
        if isinstance(error, Transient):
            self._try_again(run, step, error)
        elif isinstance(error, AccessDenied):
            self._try_again(run, step, ServerUnreachable(str(error)))
        elif run.state >= State.FINISHED or step == "stop":
            self._after_the_ending(run, step, error)
        elif isinstance(error, RunClosed):
            self._end(run, Outcome.CLOSED, str(error))
        elif isinstance(error, RunFailed):
            self._end(run, error.outcome, str(error))
        else:
            _log_of(run).error("step_bug", step=step, exc_info=error)
            self._end(
                run,
                Outcome.BUG,
                f"The node failed in an unexpected way ({type(error).__name__}); its log says more.",
            )

    def _after_the_ending(self, run: Run, step: str, error: BaseException) -> None:
        """How the run ends is decided: what the server refuses for good is over, everything else is tried again."""
        if step == "report" and isinstance(error, RunClosed):
            _log_of(run).info("report_refused", reason=str(error))
            self._move(run, Advance(State.REPORTED, {}))
            return
        _log_of(run).error("step_bug", step=step, exc_info=error)
        self._try_again(run, step, Transient(str(error)))

    def _end(self, run: Run, ending: Outcome, reason: str) -> None:
        """Decide how a run ends; the stop step then does it."""
        if run.ending is None and run.state < State.FINISHED:
            _log_of(run).info("run_ending", outcome=str(ending), reason=reason)
            self._record(run, replace(run, ending=ending, reason=reason))
        self._make_due(run.id)

    def _try_again(self, run: Run, step: str, error: Transient) -> None:
        if step == "announce":
            self._quiet.add(run.id)  # a courtesy must not hold the run up
        self._note_trouble(error)
        tries = self._retries[run.id] = self._retries.get(run.id, 0) + 1
        seconds = 0.0 if step == "announce" else min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** min(tries, 10))
        _log_of(run).debug("step_postponed", step=step, tries=tries, seconds=seconds, reason=str(error))
        self._make_due(run.id, after=seconds)

    def _note_trouble(self, error: NodeAgentError) -> None:
        if isinstance(error, ServerUnreachable | AccessDenied):
            self._server.lost(str(error))
        elif isinstance(error, EngineUnreachable):
            self._engine.lost(str(error))
        else:
            log.warning("trouble", reason=str(error))

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def _record(self, before: Run, after: Run) -> None:
        if after == before:
            return
        self._journal.update(before, after, at=self._clock.now())
        self._runs.keep(after)
        if after.announced is not before.announced:
            self._channel.tell_status(StatusChange(run=after, status=after.announced))

    def _forget(self, run: Run) -> None:
        self._finished += 1
        self._ended_at[run.id] = self._clock.monotonic()
        self._runs.drop(run.id)
        for known in (self._learned_at, self._due, self._retries):
            known.pop(run.id, None)
        self._quiet.discard(run.id)
        self._suspects.discard(run.id)

    def _make_due(self, run_id: RunId, *, after: float = 0.0) -> None:
        """Have the run looked at; an earlier wish stands, also one that came while a step was in flight."""
        if self._runs.is_open(run_id):
            at = self._clock.monotonic() + after
            self._due[run_id] = min(at, self._due.get(run_id, at))

    def _make_due_where(self, condition: Callable[[Run], bool]) -> None:
        for run in self._runs:
            if condition(run):
                self._make_due(run.id)

    # --- messages from the server -----------------------------------------------------------------------------

    def _on_server_online(self, _: ServerOnline) -> None:
        if not self._online:
            log.info("server_online")
        self._online = True
        self._server_answered()
        self._channel.ping()
        self._share_node_facts()
        self._hands.list_runs(None)

    def _on_server_offline(self, message: ServerOffline) -> None:
        if self._online:
            log.warning("server_offline", reason=message.reason)
        self._online = False

    def _on_task_hinted(self, message: TaskHinted) -> None:
        self._hands.list_runs(message.task_id)

    def _on_kill_requested(self, message: KillRequested) -> None:
        for run in self._runs:
            if message.run_ids is None or run.id in message.run_ids:
                self._end(run, Outcome.KILLED, "The run was killed at the request of a user.")

    def _on_runs_listed(self, message: RunsListed) -> None:
        self._server_answered()
        for listed in message.runs:
            if not self._runs.is_open(listed.id):
                self._take_in(listed, asked_at=message.asked_at)
        # No later list can have been asked for before this one.
        self._ended_at = {run: at for run, at in self._ended_at.items() if at >= message.asked_at}
        if not message.complete:
            return
        self._suspect_absent({listed.id for listed in message.runs}, message.asked_at)
        if not self._swept:
            self._sweep()

    def _take_in(self, listed: OpenRun, *, asked_at: float) -> None:
        run = Run(
            id=listed.id,
            task=listed.task,
            received_at=self._clock.now(),
            fault=listed.fault,
            announced=listed.status,
        )
        if not self._entered(run, listed, asked_at=asked_at):
            log.debug("run_listed_after_its_end", run_id=run.id)
            return
        self._learned_at[run.id] = self._clock.monotonic()
        self._runs.keep(run)
        self._make_due(run.id)
        _log_of(run).info("run_received", parent_id=run.task.parent_id)

    def _entered(self, run: Run, listed: OpenRun, *, asked_at: float) -> bool:
        """Record a listed run; False when it is one that is over, shown by a list that was overtaken."""
        if self._journal.insert(run):
            return True
        # Some databases give the number of a deleted run to the next one. The old run was claimed, this one is not.
        is_another = listed.claimed_at is None and self._ended_at.get(run.id, float("-inf")) < asked_at
        if is_another:
            self._journal.renew(run, at=self._clock.now())
        return is_another

    def _suspect_absent(self, listed: set[RunId], asked_at: float) -> None:
        """Have the server asked about each run that the complete list does not show: it may be closed.

        The list may have shifted between two pages, so that absence alone proves nothing.
        """
        for run in self._runs:
            going = run.ending is None and run.state < State.FINISHED
            if going and run.id not in listed and self._learned_at[run.id] < asked_at:
                self._suspects.add(run.id)
                self._make_due(run.id)

    def _on_listing_failed(self, message: ListingFailed) -> None:
        self._note_trouble(message.error)
        self._timetable.hasten(self._poll, to=self._clock.monotonic() + RELIST_SECONDS)

    def _server_answered(self) -> None:
        if self._server.back():
            self._make_due_where(lambda run: run.id in self._retries)

    # --- messages from the engine and the proxy ---------------------------------------------------------------

    def _on_container_changed(self, message: ContainerChanged) -> None:
        run = self._runs.get(message.run_id)
        if run is not None and run.state is State.RUNNING:
            self._make_due(run.id)

    def _on_engine_watched(self, _: EngineWatched) -> None:
        self._engine.back()
        # Whatever happened while nobody watched is found by looking.
        self._make_due_where(lambda run: run.state is State.RUNNING or run.id in self._retries)

    def _on_engine_lost(self, message: EngineLost) -> None:
        self._engine.lost(message.reason)

    def _on_subtask_created(self, message: SubtaskCreated) -> None:
        run = self._runs.get(message.run_id)
        if run is not None and not run.has_subtasks:
            self._record(run, replace(run, has_subtasks=True))
            _log_of(run).info("slot_lent_to_subtasks")

    def _on_pull_progressed(self, message: PullProgressed) -> None:
        run = self._runs.get(message.run_id)
        if run is not None:
            _log_of(run).info("image_pull_progress", received=message.current, of=message.total)

    # --- by the clock -----------------------------------------------------------------------------------------

    def _ping(self) -> None:
        if self._online:
            self._channel.ping()

    def _poll(self) -> None:
        self._hands.list_runs(None)

    def _look_at_running(self) -> None:
        """Limits on time and disk need a look even when the engine has nothing to say."""
        self._make_due_where(lambda run: run.state is State.RUNNING)

    def _sweep(self) -> None:
        self._swept = True
        self._hands.sweep()

    def _on_sweep_done(self, message: SweepDone) -> None:
        if isinstance(message.error, NodeAgentError):
            self._note_trouble(message.error)
            self._swept = False
        elif message.error is not None:
            log.error("sweep_bug", exc_info=message.error)
        elif message.removed:
            log.info("strays_removed", count=message.removed)

    def _on_node_facts_ready(self, message: NodeFactsReady) -> None:
        self._node_facts = message.facts
        self._share_node_facts()

    def _share_node_facts(self) -> None:
        if self._online and self._node_facts:
            self._channel.tell_node(self._node_facts)

    def _heartbeat(self) -> None:
        snapshot = self._snapshot()
        log.info(
            "heartbeat",
            online=snapshot.online,
            waiting=snapshot.waiting,
            working=snapshot.working,
            owed=snapshot.owed,
            finished=snapshot.finished,
            server_problem=snapshot.server_problem or None,
            engine_problem=snapshot.engine_problem or None,
        )

    def _show(self) -> None:
        self._hands.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        owed = [run.finished_at or 0.0 for run in self._runs if run.state is State.FINISHED]
        waiting = self._runs.count(lambda run: run.state is State.RECEIVED)
        ending = self._runs.count(lambda run: run.state > State.FINISHED)
        return Snapshot(
            online=self._online,
            server_problem=self._server.problem,
            engine_problem=self._engine.problem,
            waiting=waiting,
            working=len(self._runs) - waiting - len(owed) - ending,
            owed=len(owed),
            oldest_owed_at=min(owed, default=None),
            finished=self._finished,
            draining=self._stopping is StopKind.DRAIN,
        )

    def _on_stop_asked(self, message: StopAsked) -> None:
        log.info("stop_asked", how=str(message.kind))
        self._stopping = message.kind
        grace = 0.0 if message.kind is StopKind.NOW else GRACE_SECONDS
        self._stop_by = self._clock.monotonic() + grace


def _log_of(run: Run) -> "structlog.stdlib.BoundLogger":
    bound: structlog.stdlib.BoundLogger = log.bind(run_id=run.id, task_id=run.task.id, image=run.task.image)
    return bound


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
