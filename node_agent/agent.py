"""The control loop: one thread that alone decides, writes the journal and speaks on the socket.

It never waits for network or engine. Messages say which run to look at; a pool of threads does one step of one run at a
time and posts what came of it. Restarting is the normal path: after a start every open run is simply looked at again.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from node_agent.availability import Outside
from node_agent.clocks import CautiousClock
from node_agent.company import Company
from node_agent.domain.messages import (
    ConfigurationRead,
    ContainerChanged,
    EngineLost,
    EngineWatched,
    ImagePulled,
    JobsHandedOver,
    KillRequested,
    ListingFailed,
    Message,
    NodeCame,
    NodeFactsReady,
    NodeLeft,
    ParentsWeighed,
    PruneAsked,
    PullProgressed,
    ReloadAsked,
    RunsListed,
    ServerOffline,
    ServerOnline,
    SpaceFell,
    SpaceSeen,
    SpaceTaken,
    StepDone,
    StopAsked,
    StopKind,
    SubtaskCreated,
    SweepDone,
    TaskHinted,
)
from node_agent.domain.ports import Channel, Clock, Journal, LiveLogs, Renewal
from node_agent.domain.run import Outcome, Run, RunId, State, Status
from node_agent.domain.task import TaskId
from node_agent.domain.turns import Bounds, Cause
from node_agent.errors import DiskUnwritable, Transient
from node_agent.housekeeping import Housekeeping
from node_agent.outbox import Outbox
from node_agent.phases import PhaseWatch
from node_agent.progress import Progress
from node_agent.runlog import log_of
from node_agent.runtable import RunTable
from node_agent.stuck import StuckStep
from node_agent.timetable import Timetable
from node_agent.waiting import WaitingRoom

log = structlog.get_logger()

PING_SECONDS = 30.0  # the server forgets a node after 65 s without a sign of life
POLL_SECONDS = 30.0
LONGEST_POLL_SECONDS = 300.0
LISTING_SHARE = 0.1  # of the time, for the server has a thousand runs to look up when a thousand wait
RELIST_SECONDS = 2.0  # after a listing that failed
OBSERVE_SECONDS = 5.0
PHASE_SECONDS = 1.0
WATCH_SECONDS = 1.0
WEIGH_SECONDS = 1.0
WEIGH_PATIENCE_SECONDS = 120.0  # an engine that gave no answer by then is asked again
SWEEP_SECONDS = 600.0
PRUNE_SECONDS = 3600.0
PRUNE_PAUSE_SECONDS = 0.2  # between two batches: runs come first
HEARTBEAT_SECONDS = 300.0
PRESENCE_SECONDS = 1.0
LIVE_LOG_SECONDS = 1.0
PLACES_SHOWN = 50
STUCK_SHOWN = 5
LISTING = "listing"  # who may miss the disk, besides runs, the journal and the sweep
GRACE_SECONDS = 10.0  # for steps in flight when the agent is asked to stop


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
    sweeping: bool = False
    """Whether strays are looked for now, or the journal forgets runs."""
    sweeps: int = 0
    """Searches for strays that ended since the start."""
    disk_problem: str = ""
    """Why the state directory, or the engine's disk, cannot be written to; empty while it can."""
    owed_bytes: int = 0
    """How large the results and logs of owed reports are together."""
    company_problem: str = ""
    """What is wrong when another agent works with this node's API key; empty when none does."""
    owed_problem: str = ""
    """Why the oldest report that was tried has not arrived; empty when all that were tried did."""
    next_report_at: float | None = None
    """When a report is tried next; None when none waits, or one is on its way."""
    waiting_for: str = ""
    """Why runs wait; empty when none does."""
    queue: tuple[int, ...] = ()
    """The runs that wait, in the order of their turns; of many only the first."""
    stuck_steps: tuple[str, ...] = ()
    """Steps that take longer than they should; of many only the first."""


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
    kill: Callable[[Run], None] = lambda _: None
    """End the container of a run at once, beside a step of it that is in flight; nothing comes back."""
    stuck: Callable[[], Sequence[StuckStep]] = lambda: ()
    """Return the steps that take longer than their bounds; their threads are replaced."""
    weigh: Callable[[Sequence[Run]], None] = lambda _: None
    """Ask the engine for the CPU time of these runs; a ParentsWeighed comes back."""
    report_size: Callable[[RunId], int] = lambda _: 0
    """Say how many bytes of result and log wait to be reported."""
    live_logs: LiveLogs | None = None
    """The logs of running algorithms; None when the owner does not share them while a run goes on."""
    reload: Callable[[], None] = lambda: None
    """Read the configuration again; a ConfigurationRead comes back."""
    reloaded: Callable[[], None] = lambda: None
    """Say that the configuration is read and counts as far as it can."""


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
        bounds: Bounds,
        keep_runs: float = float("inf"),
        company: Company | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._channel = channel
        self._hands = hands
        self._clock = clock
        self._runs = runs
        self._live_logs = hands.live_logs
        self._reloads_asked = 0
        self._node_facts: Mapping[str, object] = {}
        self._company = company or Company()
        self._outside = Outside(clock.monotonic)
        self._room = WaitingRoom(runs, bounds, clock.monotonic)
        self._weighing_since: float | None = None
        self._phases = PhaseWatch(now=clock.monotonic())
        self._progress = Progress(
            runs=runs,
            journal=journal,
            channel=channel,
            clock=clock,
            outside=self._outside,
            submit=hands.submit,
            kill=hands.kill,
            outbox=Outbox(server=self._outside.server, size_of=hands.report_size),
            room=self._room,
            phases=self._phases,
        )
        self._tidying = Housekeeping(
            progress=self._progress,
            journal=journal,
            outside=self._outside,
            begin_sweep=hands.sweep,
            ages=CautiousClock(clock),
            keep_runs=keep_runs,
        )
        self._stopping: StopKind | None = None
        self._stop_by = 0.0
        self._timetable = Timetable(
            {
                self._ping: PING_SECONDS,
                self._poll: POLL_SECONDS,
                self._look_at_running: OBSERVE_SECONDS,
                self._look_at_phases: PHASE_SECONDS,
                self._watch_steps: WATCH_SECONDS,
                self._weigh_parents: WEIGH_SECONDS,
                self._tidying.sweep: SWEEP_SECONDS,
                self._prune: PRUNE_SECONDS,
                self._heartbeat: HEARTBEAT_SECONDS,
                self._show: PRESENCE_SECONDS,
                self._pass_logs_on: LIVE_LOG_SECONDS,
            },
            start=clock.monotonic(),
        )
        self._reactions: Mapping[type, Callable[..., None]] = {
            ServerOnline: self._on_server_online,
            ServerOffline: self._on_server_offline,
            NodeCame: self._on_node_came,
            NodeLeft: self._on_node_left,
            TaskHinted: self._on_task_hinted,
            KillRequested: self._on_kill_requested,
            RunsListed: self._on_runs_listed,
            JobsHandedOver: self._on_jobs_handed_over,
            ListingFailed: self._on_listing_failed,
            ContainerChanged: self._on_container_changed,
            EngineWatched: self._on_engine_watched,
            EngineLost: self._on_engine_lost,
            SpaceSeen: self._on_space_seen,
            SpaceFell: self._on_space_fell,
            SpaceTaken: self._on_space_taken,
            SubtaskCreated: self._on_subtask_created,
            ParentsWeighed: self._on_parents_weighed,
            PullProgressed: self._on_pull_progressed,
            StepDone: self._progress.step_done,
            ImagePulled: self._tidying.image_pulled,
            SweepDone: self._tidying.sweep_done,
            PruneAsked: self._on_prune_asked,
            NodeFactsReady: self._on_node_facts_ready,
            StopAsked: self._on_stop_asked,
            ReloadAsked: self._on_reload_asked,
            ConfigurationRead: self._on_configuration_read,
        }

    # --- the loop ---------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Take up every open run of the journal."""
        self._progress.load()

    def run(self) -> None:
        """Work until asked to stop and nothing is in flight."""
        while not self._is_over():
            self.turn(self._seconds_to_next())

    def turn(self, timeout: float) -> None:
        """Take in what came, let time do its part, set the next steps in motion."""
        for message in self._received(timeout):
            self._react(message)
        self._timetable.run_due(self._clock.monotonic())
        if self._stopping not in {StopKind.STOP, StopKind.NOW}:
            self._progress.dispatch(draining=self._stopping is StopKind.DRAIN)

    def _react(self, message: Message) -> None:
        try:
            self._reactions[type(message)](message)
            if isinstance(message, RunsListed):
                self._progress.disk_served(LISTING)
        except DiskUnwritable as error:
            # The journal refused, so nothing is decided yet: a step is repeated, a listing shows the rest again.
            if isinstance(message, StepDone):
                self._progress.try_again(self._runs[message.run_id], message.step, error)
            else:
                self._outside.trouble(error, of=LISTING)
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
        waking = self._progress.next_at()
        next_at = self._timetable.next_at() if waking is None else min(waking, self._timetable.next_at())
        return max(0.001, next_at - self._clock.monotonic())

    def _is_over(self) -> bool:
        if self._stopping is None:
            return False
        if self._stopping is StopKind.DRAIN:
            return not self._runs.begun() and not self._progress.is_busy
        return not self._progress.is_busy or self._clock.monotonic() >= self._stop_by

    # --- messages from the server -----------------------------------------------------------------------------

    def _on_server_online(self, _: ServerOnline) -> None:
        self._outside.connection.back()
        self._channel.ping()
        self._share_node_facts()
        self._hands.list_runs(None)

    def _on_server_offline(self, message: ServerOffline) -> None:
        if not self._outside.connection.problem:
            self._outside.connection.lost(message.reason)

    def _on_node_came(self, _: NodeCame) -> None:
        self._company.came("online after this agent")

    def _on_node_left(self, _: NodeLeft) -> None:
        self._company.left()
        # The server counts the node as absent now, and it is not.
        self._ping()

    def _on_task_hinted(self, message: TaskHinted) -> None:
        self._hands.list_runs(message.task_id)

    def _on_kill_requested(self, message: KillRequested) -> None:
        for run in self._runs:
            wanted = not run.is_job if message.run_ids is None else run.id in message.run_ids
            if wanted:
                self._progress.end(run, Outcome.KILLED, "The run was killed at the request of a user.")

    def _on_runs_listed(self, message: RunsListed) -> None:
        self._progress.server_answered()
        is_first = not self._progress.was_listed
        self._progress.take_in_list(message)
        self._spare_the_server(self._clock.monotonic(), message.asked_at)
        if message.complete:
            self._tidying.sweep_once()
            if is_first:
                self._prune()

    def _spare_the_server(self, now: float, asked_at: float) -> None:
        """Ask for lists that take long less often, as long as events tell of new tasks."""
        if self._is_connected:
            pause = min(LONGEST_POLL_SECONDS, (now - asked_at) / LISTING_SHARE)
            self._timetable.put_off(self._poll, to=now + pause)

    def _on_jobs_handed_over(self, message: JobsHandedOver) -> None:
        for listed in message.runs:
            if self._runs.get(listed.id) is None:
                self._progress.take_in(listed, asked_at=self._clock.monotonic())

    def _on_listing_failed(self, message: ListingFailed) -> None:
        self._outside.trouble(message.error, of=LISTING)
        self._timetable.hasten(self._poll, to=self._clock.monotonic() + RELIST_SECONDS)

    @property
    def _is_connected(self) -> bool:
        return not self._outside.connection.problem

    # --- messages from the engine and the proxy ---------------------------------------------------------------

    def _on_container_changed(self, message: ContainerChanged) -> None:
        run = self._runs.get(message.run_id)
        if run is not None and run.state is State.RUNNING:
            self._progress.make_due(run.id)

    def _on_engine_watched(self, _: EngineWatched) -> None:
        self._outside.engine.back()
        self._room.hold(Cause.ENGINE, "")
        self._progress.try_everything_again()
        # Whatever happened while nobody watched is found by looking.
        self._look_at_running()

    def _on_engine_lost(self, message: EngineLost) -> None:
        self._outside.engine.lost(message.reason)
        self._room.hold(Cause.ENGINE, "the container engine does not answer")

    def _on_space_seen(self, message: SpaceSeen) -> None:
        self._room.hold(Cause.DISK, message.shortage)

    def _on_space_fell(self, _: SpaceFell) -> None:
        self._look_at_running()

    def _on_space_taken(self, message: SpaceTaken) -> None:
        run = self._runs.get(message.run_id)
        if run is not None and run.state is State.RUNNING:
            self._progress.end(run, Outcome.OUTPUT_TOO_LARGE, message.reason)

    def _on_subtask_created(self, message: SubtaskCreated) -> None:
        run = self._runs.get(message.run_id)
        if run is not None:
            self._progress.lend_slot(run)

    def _on_parents_weighed(self, message: ParentsWeighed) -> None:
        self._weighing_since = None
        self._room.weighed(message.readings, at=message.at)

    def _on_pull_progressed(self, message: PullProgressed) -> None:
        run = self._runs.get(message.run_id)
        if run is not None:
            log_of(run).info("image_pull_progress", received=message.current, of=message.total)

    # --- by the clock -----------------------------------------------------------------------------------------

    def _ping(self) -> None:
        if self._is_connected:
            self._channel.ping()

    def _poll(self) -> None:
        self._hands.list_runs(None)

    def _look_at_running(self) -> None:
        """Limits on time and disk need a look even when the engine has nothing to say."""
        self._progress.make_due_where(lambda run: run.state is State.RUNNING)

    def _look_at_phases(self) -> None:
        """End what takes too long to begin; while the server is away nothing does."""
        now = self._clock.monotonic()
        if self._outside.server.problem:
            self._phases.skip(now)
            return
        for overdue in self._phases.overdue(self._runs.begun(), self._room.bounds, now=now):
            log_of(overdue.run).warning(
                "phase_too_long",
                phase=str(overdue.phase),
                limit=overdue.limit,
                trouble=overdue.trouble or None,
            )
            try:
                self._progress.end(overdue.run, overdue.outcome, overdue.reason)
            except Transient as error:  # the journal refused: the next look decides it again
                self._outside.trouble(error)

    def _watch_steps(self) -> None:
        try:
            self._progress.watch(self._hands.stuck(), run_time=self._room.bounds.run_time)
        except Transient as error:  # the journal refused: the next look decides it again
            self._outside.trouble(error)

    def _weigh_parents(self) -> None:
        """Ask the engine whether parents use CPU, when that decides about runs that wait."""
        now, since = self._clock.monotonic(), self._weighing_since
        if since is not None and now - since < WEIGH_PATIENCE_SECONDS:
            return
        parents = self._room.parents_to_weigh()
        if parents:
            self._weighing_since = now
            self._hands.weigh(parents)

    def _pass_logs_on(self) -> None:
        """Send what running algorithms wrote, about once a second.

        Not before the server knows that a run is active: that call erases what was sent. Not after the algorithm ended:
        the whole log is on its way then.
        """
        if self._live_logs is None or not self._is_connected:
            return
        spoken_of = {
            run.id: run
            for run in self._runs.begun()
            if run.state is State.RUNNING and run.announced is Status.ACTIVE and run.ending is None
        }
        for piece in self._live_logs.keep_up(spoken_of.values()):
            self._channel.tell_log(spoken_of[piece.run_id], piece)
            self._progress.hold_report(piece.run_id)

    def _on_prune_asked(self, _: PruneAsked) -> None:
        self._tidying.sweep_anew()
        self._prune()

    def _prune(self) -> None:
        """Have the journal forget old runs, a few at once, so that nothing waits for long."""
        if self._tidying.prune():
            self._timetable.hasten(self._prune, to=self._clock.monotonic() + PRUNE_PAUSE_SECONDS)

    def _on_node_facts_ready(self, message: NodeFactsReady) -> None:
        changed, self._node_facts = message.facts != self._node_facts, message.facts
        if self._is_connected and changed:
            self._channel.tell_node(self._node_facts)

    def _share_node_facts(self) -> None:
        if self._is_connected and self._node_facts:
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
            waiting_for=snapshot.waiting_for or None,
            server_problem=snapshot.server_problem or None,
            engine_problem=snapshot.engine_problem or None,
            disk_problem=snapshot.disk_problem or None,
        )

    def _show(self) -> None:
        self._outside.look()
        if self._outside.server.problem:
            # whoever said so, a listing is how the server's return is found
            self._timetable.hasten(self._poll, to=self._clock.monotonic() + RELIST_SECONDS)
        self._hands.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        begun = self._runs.begun()
        owed = [run.finished_at or 0.0 for run in begun if run.state is State.FINISHED and not run.is_job]
        waiting = len(self._runs) - len(begun)
        ending = sum(run.state > State.FINISHED for run in begun)
        return Snapshot(
            online=self._outside.is_online,
            server_problem=self._outside.server.problem,
            engine_problem=self._outside.engine.problem,
            disk_problem=self._outside.disk.problem,
            waiting=waiting,
            working=len(begun) - len(owed) - ending,
            owed=len(owed),
            company_problem=self._company.problem,
            owed_bytes=self._progress.owed_bytes(),
            oldest_owed_at=min(owed, default=None),
            owed_problem=self._progress.owed_problem,
            next_report_at=self._progress.next_report_at(),
            finished=self._progress.ended,
            draining=self._stopping is StopKind.DRAIN,
            sweeping=self._tidying.is_busy,
            sweeps=self._tidying.sweeps,
            waiting_for=self._room.reason,
            queue=self._room.places(PLACES_SHOWN) if waiting else (),
            stuck_steps=self._progress.stuck_steps[:STUCK_SHOWN],
        )

    def _on_stop_asked(self, message: StopAsked) -> None:
        log.info("stop_asked", how=str(message.kind))
        self._stopping = message.kind
        grace = 0.0 if message.kind is StopKind.NOW else GRACE_SECONDS
        self._stop_by = self._clock.monotonic() + grace

    # --- a configuration that changed -------------------------------------------------------------------------

    def _on_reload_asked(self, _: ReloadAsked) -> None:
        """Have the configuration read; whoever asks while it is read may mean what was written meanwhile."""
        self._reloads_asked += 1
        if self._reloads_asked == 1:
            self._hands.reload()

    def _on_configuration_read(self, message: ConfigurationRead) -> None:
        if message.renewal is not None:
            self._renew(message.renewal)
        again, self._reloads_asked = self._reloads_asked > 1, 0
        if again:
            self._on_reload_asked(ReloadAsked())
            return
        self._hands.reloaded()

    def _renew(self, renewal: Renewal) -> None:
        if self._live_logs is not renewal.live_logs and self._live_logs is not None:
            self._live_logs.keep_up(())
        self._live_logs = renewal.live_logs
        self._room.bounds = renewal.bounds
        renewal.take_effect()
