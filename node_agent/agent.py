"""The control loop: one thread that alone decides, writes the journal and speaks on the socket.

It never waits for network or engine. Messages say which run to look at; a pool of threads does one step of one run at a
time and posts what came of it. Restarting is the normal path: after a start every open run is simply looked at again.
"""

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from node_agent.availability import Outside
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
from node_agent.domain.ports import Channel, Clock, Journal, LiveLogs
from node_agent.domain.run import Outcome, Run, State, Status
from node_agent.domain.task import TaskId
from node_agent.errors import DiskFull, NodeAgentError
from node_agent.progress import Progress
from node_agent.runlog import log_of
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
LIVE_LOG_SECONDS = 1.0
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
    live_logs: LiveLogs | None = None
    """The logs of running algorithms; None when the owner does not share them while a run goes on."""


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
        self._channel = channel
        self._hands = hands
        self._clock = clock
        self._runs = runs
        self._node_facts: Mapping[str, object] = {}
        self._outside = Outside()
        self._progress = Progress(
            runs=runs,
            journal=journal,
            channel=channel,
            clock=clock,
            outside=self._outside,
            submit=hands.submit,
            concurrent_runs=concurrent_runs,
        )
        self._online = False
        self._swept = False
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
                self._pass_logs_on: LIVE_LOG_SECONDS,
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
            StepDone: self._progress.step_done,
            SweepDone: self._on_sweep_done,
            NodeFactsReady: self._on_node_facts_ready,
            StopAsked: self._on_stop_asked,
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
        except DiskFull as error:
            # The journal refused, so nothing is decided yet: a step is repeated, a listing shows the rest again.
            if isinstance(message, StepDone):
                self._progress.try_again(self._runs[message.run_id], message.step, error)
            else:
                self._outside.trouble(error)
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
            return all(run.state is State.RECEIVED for run in self._runs) and not self._progress.is_busy
        return not self._progress.is_busy or self._clock.monotonic() >= self._stop_by

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
                self._progress.end(run, Outcome.KILLED, "The run was killed at the request of a user.")

    def _on_runs_listed(self, message: RunsListed) -> None:
        self._server_answered()
        self._progress.take_in_list(message)
        if message.complete and not self._swept:
            self._sweep()

    def _on_listing_failed(self, message: ListingFailed) -> None:
        self._outside.trouble(message.error)
        self._timetable.hasten(self._poll, to=self._clock.monotonic() + RELIST_SECONDS)

    def _server_answered(self) -> None:
        if self._outside.server.back():
            self._progress.try_everything_again()

    # --- messages from the engine and the proxy ---------------------------------------------------------------

    def _on_container_changed(self, message: ContainerChanged) -> None:
        run = self._runs.get(message.run_id)
        if run is not None and run.state is State.RUNNING:
            self._progress.make_due(run.id)

    def _on_engine_watched(self, _: EngineWatched) -> None:
        self._outside.engine.back()
        self._progress.try_everything_again()
        # Whatever happened while nobody watched is found by looking.
        self._look_at_running()

    def _on_engine_lost(self, message: EngineLost) -> None:
        self._outside.engine.lost(message.reason)

    def _on_subtask_created(self, message: SubtaskCreated) -> None:
        run = self._runs.get(message.run_id)
        if run is not None:
            self._progress.lend_slot(run)

    def _on_pull_progressed(self, message: PullProgressed) -> None:
        run = self._runs.get(message.run_id)
        if run is not None:
            log_of(run).info("image_pull_progress", received=message.current, of=message.total)

    # --- by the clock -----------------------------------------------------------------------------------------

    def _ping(self) -> None:
        if self._online:
            self._channel.ping()

    def _poll(self) -> None:
        self._hands.list_runs(None)

    def _look_at_running(self) -> None:
        """Limits on time and disk need a look even when the engine has nothing to say."""
        self._progress.make_due_where(lambda run: run.state is State.RUNNING)

    def _pass_logs_on(self) -> None:
        """Send what running algorithms wrote, about once a second.

        Not before the server knows that a run is active: that call erases what was sent. Not after the algorithm ended:
        the whole log is on its way then.
        """
        if self._hands.live_logs is None or not self._online:
            return
        spoken_of = {
            run.id: run
            for run in self._runs
            if run.state is State.RUNNING and run.announced is Status.ACTIVE and run.ending is None
        }
        for piece in self._hands.live_logs.keep_up(spoken_of.values()):
            self._channel.tell_log(spoken_of[piece.run_id], piece)
            self._progress.hold_report(piece.run_id)

    def _sweep(self) -> None:
        self._swept = True
        self._hands.sweep()

    def _on_sweep_done(self, message: SweepDone) -> None:
        if isinstance(message.error, NodeAgentError):
            self._outside.trouble(message.error)
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
            server_problem=self._outside.server.problem,
            engine_problem=self._outside.engine.problem,
            waiting=waiting,
            working=len(self._runs) - waiting - len(owed) - ending,
            owed=len(owed),
            oldest_owed_at=min(owed, default=None),
            finished=self._progress.ended,
            draining=self._stopping is StopKind.DRAIN,
        )

    def _on_stop_asked(self, message: StopAsked) -> None:
        log.info("stop_asked", how=str(message.kind))
        self._stopping = message.kind
        grace = 0.0 if message.kind is StopKind.NOW else GRACE_SECONDS
        self._stop_by = self._clock.monotonic() + grace
