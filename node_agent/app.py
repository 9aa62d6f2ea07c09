"""Builds the agent from its configuration, starts every thread there is, and ends them in order.

Threads: the control loop is the main thread. Beside it run the step pool, the lister, the engine's events, the socket,
the proxy's server, and short-lived ones for column names and strays; docs/architecture.md maps them all.
"""

import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

from node_agent import __version__, service
from node_agent.admission import Admission
from node_agent.agent import HEARTBEAT_SECONDS, Agent, Hands, Snapshot
from node_agent.availability import engine_availability, server_availability
from node_agent.clocks import CautiousClock, SystemClock
from node_agent.company import Company
from node_agent.compute.ledger import FILE_NAME as BOOKS
from node_agent.config import Reread, Settings
from node_agent.contracts import Vantage6Contract
from node_agent.databases.access import fault_of, this_agent
from node_agent.databases.catalog import Catalog
from node_agent.databases.probe import node_facts, read_columns
from node_agent.diskuse import DiskUses
from node_agent.domain.container import PinnedImage, PullProgress
from node_agent.domain.keeping import PulledImage
from node_agent.domain.messages import (
    ConfigurationRead,
    ContainerChanged,
    EngineLost,
    EngineWatched,
    ImagePulled,
    Message,
    NodeFactsReady,
    PullProgressed,
    StopAsked,
    SubtaskCreated,
    SweepDone,
)
from node_agent.domain.policy import Policy, shared
from node_agent.domain.ports import LiveLogs
from node_agent.domain.run import Run, RunId
from node_agent.domain.runlogs import LogMask
from node_agent.domain.turns import Bounds
from node_agent.domain.verdict import NAMES_NOT_TOLD, has_user_names
from node_agent.earlytokens import EarlyTokens
from node_agent.encryption import join, own_key
from node_agent.errors import ConfigError, EngineUnreachable, Transient
from node_agent.following import FollowedLogs, log_mask_of
from node_agent.gates.quiet import Quiet
from node_agent.lister import Lister
from node_agent.openings import gates_of
from node_agent.parents import weigh
from node_agent.payload.chunks import base64_length
from node_agent.payload.keys import PrivateKey
from node_agent.payload.sealing import EnvelopeSeal
from node_agent.pool import StepPool
from node_agent.proxy.app import ProxyApp
from node_agent.proxy.inquiry import Caller
from node_agent.proxy.sealer import EnvelopeSealer, PlainSealer, Sealer
from node_agent.proxy.server import ProxyServer
from node_agent.proxy.spool import Spool
from node_agent.pruning import sweep_of
from node_agent.reloading import NewSettings, read_again
from node_agent.runtable import RunTable
from node_agent.runtime.host import host_of
from node_agent.runtime.openfiles import held_on
from node_agent.server.client import HttpServer
from node_agent.server.keys import KeyTrust
from node_agent.server.listener import SocketListener
from node_agent.server.login import Login
from node_agent.server.stores import HttpStores, open_exchange_for
from node_agent.site import Site
from node_agent.space import bounds_of, places_of, seen_free
from node_agent.spacewatch import SpaceWatch
from node_agent.stepports import Ports, PortsOf, StepSettings
from node_agent.store import presence
from node_agent.store.journal import SqliteJournal
from node_agent.store.lock import AgentLock
from node_agent.store.pins import JournalPins
from node_agent.store.rundir import DiskRunFolders
from node_agent.store.statedir import claim_state_dir

if TYPE_CHECKING:
    from node_agent.compute.service import ComputeService

log = structlog.get_logger()

Result = TypeVar("Result")

REGISTRY_PATIENCE_SECONDS = 20.0
"""A registry that is started anew ends no run; a name that nobody answers to does."""
TOKEN_THREADS = 2
SPARE_THREADS = 4
"""Step threads beyond one per slot: kills and removals do not wait for pulls."""
PROGRESS_SECONDS = 10.0
AROUND_BODY = 1 << 20
BODIES_ON_DISK = 8
"""So many of the largest bodies may be on their way through the proxy; one researcher may have half of them."""
WATCH_AGAIN_SECONDS = 2.0
LATE_FAREWELL_SECONDS = 1.5
LAST_PAUSE_SECONDS = 3.0
"""So soon is tried again, before the start, what does not work yet."""

_AVAILABILITY = {"server": server_availability, "engine": engine_availability}


class Stopped(Exception):
    """The agent was asked to stop before it had started."""


class Mailbox:
    """The one queue into the control thread; remembers whether a stop lies in it."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stop = threading.Event()

    def post(self, message: Message) -> None:
        """Put a message in; may be called from anywhere, signal frames included."""
        self.messages.put(message)
        if isinstance(message, StopAsked):
            self._stop.set()

    def give_up(self) -> None:
        """Wake everything that waits, since the agent will not start."""
        self._stop.set()

    def wait_for_stop(self, seconds: float) -> bool:
        """Sleep, but wake at once when asked to stop."""
        return self._stop.wait(seconds)


def run(settings: Settings, login: Login | None = None) -> None:
    """Run the agent until it is asked to stop; *login* may have begun. Raises ConfigError, AccessDenied."""
    log.info("agent_starting", name=settings.name, version=__version__, pid=os.getpid())
    mailbox = Mailbox()
    service.watch_signals(mailbox.post)
    with ExitStack() as stack, suppress(Stopped):
        Application(settings, mailbox, stack, login).run()
    log.info("agent_stopped")


def ensure_network(settings: Settings) -> str:
    """Do the step that needs root: the isolated network and its firewall rule. Raises ConfigError."""
    prepared = Site.of(settings).prepare()
    if not prepared.firewall.loaded:
        raise ConfigError(
            f"The firewall rule could not be loaded: {prepared.firewall.reason}.", hint="Do it as root."
        )
    network = prepared.network
    return (
        f"The network {network.name} ({network.subnet}, bridge {network.bridge}) is closed but for the proxy."
    )


def remove_network(settings: Settings) -> str:
    """Take the isolated network and its firewall rule away. Raises ConfigError."""
    Site.of(settings).remove()
    return f"The network of {settings.name} and its firewall rule are gone."


class Application:
    """The parts of one agent; each is closed again in the opposite order."""

    def __init__(
        self, settings: Settings, mailbox: Mailbox, stack: ExitStack, login: Login | None = None
    ) -> None:
        self._settings = settings
        self._post = mailbox.post
        self._mailbox = mailbox
        self._stack = stack
        self._clock = SystemClock()
        self._ages = CautiousClock(self._clock)
        self._started_at = self._clock.now()
        self._notifier = service.notifier(os.environ)
        self._node_name = ""
        self._presence = presence.PresenceFile(settings.state_dir)
        self._runs = RunTable()
        self._company = Company()
        self._log_mask = log_mask_of(settings)
        self._key = own_key(settings)
        claim_state_dir(settings.state_dir)
        stack.callback(AgentLock(settings.name, settings.state_dir).release)
        with suppress(OSError):  # the journal says it when the disk is full already
            self._presence.take_room()
        self._journal = SqliteJournal(settings.state_dir)
        stack.callback(self._journal.close)
        self._folders = DiskRunFolders(
            settings.state_dir,
            user=settings.container_user,
            ids=settings.container_ids,
            keep_seconds=settings.keep.folders,
        )
        _warn_of_one_user(settings)
        self._uses = DiskUses(lambda container, pid: held_on(settings.state_dir / "runs", container, pid=pid))
        self._catalog = Catalog(settings.databases, agent=this_agent(), groups=settings.container_groups)
        self._site = Site.of(settings)
        self._gates = gates_of(settings, self._site, asked=self._runs.asks_for)
        login = login or Login.at(settings.server)
        self._tokens = login.tokens
        self._address = login.exchange.address
        self._server = HttpServer(
            login.exchange,
            self._tokens,
            key=self._key,
            spool=_fresh_folder(settings, "answers"),
            trust=KeyTrust(pins=JournalPins(settings.state_dir), fingerprints=settings.key_fingerprints),
        )
        stack.callback(self._server.close)
        self._proxy_spool = Spool(
            settings.state_dir / "proxy", total=BODIES_ON_DISK * _largest_body(settings)
        )
        self._proxy_app = ProxyApp(
            forward=self._server.forward,
            caller_of_token=self._caller_of_token,
            runs_at=self._site.addresses.of_runs,
            log_rate=Quiet().left_out,
            on_subtask=lambda run_id: self._post(SubtaskCreated(run_id)),
            spool=self._proxy_spool,
            max_body=_largest_body(settings),
        )

    def run(self) -> None:
        """Start everything in order, work until asked to stop, end everything in the opposite order."""
        _check_databases(self._settings)
        self._meet_engine_and_server()
        self._build_agent()
        self._start_threads()
        self._notifier.ready()
        log.info("agent_ready", node=self._identity.node_name, organization=self._identity.organization_name)
        self._agent.run()
        self._notifier.stopping()

    def _meet_engine_and_server(self) -> None:
        """Ask both at the same time, since each may take its while; give up when either refuses for good."""
        with ThreadPoolExecutor(2, "start") as starting:
            site = starting.submit(self._until_it_works, "engine", self._prepare_site)
            login = starting.submit(self._until_it_works, "server", self._go_online)
            try:
                for done in as_completed((site, login)):
                    done.result()
            except BaseException:
                self._mailbox.give_up()
                raise

    def _caller_of_token(self, token_hash: str) -> Caller | None:
        run = self._runs.run_by_token(token_hash)
        return None if run is None else Caller.of(run)

    def _go_online(self) -> None:
        self._identity = self._server.identify()
        self._look_for_company()
        self._node_name = self._identity.node_name
        join(self._identity, self._key, self._server)
        self._proxy_app.seal_with(_sealer(self._key, self._server))
        # What the server has to say waits in the mailbox until the machine is proven fit.
        self._listener = SocketListener(
            self._address,
            self._tokens,
            self._identity,
            self._post,
            task_changed=self._proxy_app.waits.task_changed,
        )
        self._listener.start()
        self._stack.callback(self._listener.stop)

    def _look_for_company(self) -> None:
        """Notice another agent that is online with our key, before we are."""
        if not self._identity.seen_online:
            return
        # Perhaps it was this agent itself a moment ago, and the server has not heard of its end.
        if self._mailbox.wait_for_stop(LATE_FAREWELL_SECONDS):
            raise Stopped
        self._identity = self._server.identify()
        if self._identity.seen_online:
            self._company.came("online before this agent")

    def _prepare_site(self) -> None:
        prepared = self._site.prepare()
        self._host = host_of(self._site.connection)
        proxy = ProxyServer(
            self._proxy_app,
            address=prepared.network.gateway,
            port=self._settings.network.proxy_port,
            clients=IPv4Network(prepared.network.subnet),
            spool=self._proxy_spool,
            max_body=_largest_body(self._settings),
            holds=self._proxy_app,
        )
        with ExitStack() as stack:
            stack.callback(proxy.stop)
            proxy.start()
            stack.callback(self._gates.stop)
            self._gates.start(prepared.network)
            stack.callback(self._site.namespaces.stop)
            self._site.prove(prepared)
            self._stack.callback(stack.pop_all().close)

    def _build_agent(self) -> None:
        slots = self._settings.limits.concurrent_runs
        self._live_logs = self._live_logs_of(self._settings)
        self._ports = Ports(
            server=self._server,
            runtime=self._site.engine,
            folders=self._folders,
            databases=self._catalog,
            admission=self._admission(),
            contract=Vantage6Contract(),
            clock=self._clock,
            settings=_step_settings(self._settings, log_mask=self._log_mask, node_id=self._identity.node_id),
            wanted=self._runs.is_wanted,
            has_company=self._company.is_there,
            progress=_throttled_progress(self._post, self._clock),
            pulled=self._note_pull,
            seal=None if self._key is None else EnvelopeSeal(self._server.keys.of),
            tokens=EarlyTokens(),
            uses=self._uses,
            free_for_images=self._free_for_images,
        )
        self._compute = self._compute_service()
        self._pool = StepPool(
            ports_of=self._ports_of(self._ports), post=self._post, threads=slots + SPARE_THREADS
        )
        self._lister = Lister(
            server=self._server,
            folders=self._folders,
            clock=self._clock,
            is_open=self._runs.is_open,
            was_open=self._runs.was_open,
            post=self._post,
        )
        self._agent = Agent(
            mailbox=self._mailbox.messages,
            runs=self._runs,
            journal=self._journal,
            channel=self._listener,
            hands=Hands(
                submit=self._pool.submit,
                list_runs=self._lister.ask,
                sweep=lambda: _in_background(self._sweep, name="sweep"),
                show=self._show,
                weigh=self._weigh,
                kill=self._pool.kill,
                stuck=self._pool.stuck,
                report_size=self._folders.report_size,
                live_logs=self._live_logs,
                reload=self._begin_reload,
                reloaded=self._notifier.ready,
            ),
            keep_runs=self._settings.keep.runs,
            company=self._company,
            clock=self._clock,
            bounds=self._bounds_of(self._settings),
        )
        self._agent.load()

    def _compute_service(self) -> "ComputeService | None":
        # most nodes offer no compute API, and do without the memory it takes
        if not (self._settings.compute_api.listen or (self._settings.state_dir / BOOKS).exists()):
            return None
        from node_agent.compute.service import ComputeService

        compute = ComputeService(
            self._settings,
            run_of=self._runs.get,
            runtime=self._site.engine,
            folders=self._folders,
            post=self._post,
            clock=self._clock,
            mask=self._log_mask,
        )
        self._stack.callback(compute.stop)
        return compute

    def _ports_of(self, ports: Ports) -> PortsOf:
        """Give every run what its steps work with: those of jobs have another origin."""
        compute = self._compute

        def ports_of(run: Run) -> Ports:
            return compute.ports_of(run, ports) if compute is not None and run.is_job else ports

        return ports_of

    def _admission(self) -> Admission:
        policy, server = self._settings.policy, self._settings.server
        _warn_of_names(policy)
        return Admission(
            policy=policy,
            own_organization_id=self._identity.organization_id,
            server=self._server,
            stores=HttpStores(
                self._tokens, server_url=server.url, open_exchange=open_exchange_for(server.ca_bundle)
            ),
            folders=self._folders,
            clock=self._clock,
        )

    def _bounds_of(self, settings: Settings) -> Bounds:
        return bounds_of(settings.limits, machine_memory=self._host.memory)

    def _live_logs_of(self, settings: Settings) -> LiveLogs | None:
        if not settings.share.live_logs:
            return None
        return FollowedLogs(
            runtime=self._site.engine,
            folders=self._folders,
            mask=self._log_mask,
            limit=settings.limits.log_size,
            clock=self._clock,
        )

    # --- a configuration that changed ---------------------------------------------------------------------------

    def _begin_reload(self) -> None:
        self._notifier.reloading()
        # a disk of the owner's that hangs must not stop the control loop
        _in_background(self._reload, name="reload")

    def _reload(self) -> None:
        self._post(ConfigurationRead(read_again(self._settings, self._prepared)))

    def _prepared(self, found: Reread) -> NewSettings:
        """Make everything ready that depends on settings which may change, for the control loop to take up."""
        settings, before = found.settings, self._settings
        _warn_of_names(settings.policy)
        ports = replace(
            self._ports,
            admission=replace(self._ports.admission, policy=settings.policy),
            settings=_step_settings(settings, log_mask=self._log_mask, node_id=self._identity.node_id),
        )
        told = [(each.share.live_logs, each.limits.log_size) for each in (before, settings)]
        live_logs = self._live_logs if told[0] == told[1] else self._live_logs_of(settings)
        return NewSettings(
            found=found,
            bounds=self._bounds_of(settings),
            live_logs=live_logs,
            swap=partial(self._swap, settings, ports, live_logs),
        )

    def _swap(self, settings: Settings, ports: Ports, live_logs: LiveLogs | None) -> None:
        before, self._settings = self._settings, settings
        self._ports, self._live_logs = ports, live_logs
        self._pool.renew(
            ports_of=self._ports_of(ports), threads=settings.limits.concurrent_runs + SPARE_THREADS
        )
        if (settings.share, settings.policy) != (before.share, before.policy):
            _in_background(self._find_node_facts, name="columns")

    def _start_threads(self) -> None:
        self._pool.start()
        self._ports.tokens.start(threads=TOKEN_THREADS)
        _in_background(self._lister.serve_forever, name="lister")
        _in_background(self._watch_engine, name="engine-events")
        _in_background(self._site.namespaces.serve_forever, name="namespaces")
        # once before the first turn: nothing may begin on a disk nobody has looked at
        space = self._space_watch()
        space.look_safely()
        _in_background(space.serve_forever, name="space")
        _in_background(self._find_node_facts, name="columns")
        if self._compute is not None:
            self._compute.start()

    def _until_it_works(self, what: str, action: Callable[[], Result]) -> Result:
        """Try until it works; say so once per change, and stop at once when asked to."""
        answering = _AVAILABILITY[what](self._clock.monotonic)
        beat_at = self._clock.monotonic() + HEARTBEAT_SECONDS
        pause = 0.5
        while True:
            try:
                result = action()
            except Transient as error:
                answering.lost(str(error))
                answering.look()
                self._show(_waiting_for(what, str(error)))
                if self._clock.monotonic() >= beat_at:
                    beat_at += HEARTBEAT_SECONDS
                    log.info("heartbeat", waiting_for=what, reason=str(error))
            else:
                answering.back()
                return result
            if self._mailbox.wait_for_stop(pause):
                raise Stopped
            pause = min(LAST_PAUSE_SECONDS, pause * 2)

    # --- what the control loop sets in motion, each in a thread of its own --------------------------------------

    def _weigh(self, parents: Sequence[Run]) -> None:
        def read() -> None:
            self._post(weigh(parents, self._site.engine, self._clock.monotonic))

        _in_background(read, name="parents")

    def _sweep(self) -> None:
        try:
            # Whoever reloads the machine's firewall drops our rule with all others.
            self._site.prepare()
            self._gates.refresh()
            swept = sweep_of(
                self._settings, self._site, folders=self._folders, clock=self._ages, runs=self._runs
            ).do()
            if self._compute is not None:
                self._compute.forget_old()
        except Exception as error:  # noqa: BLE001 - the control loop decides what an error means
            self._post(SweepDone(0, error))
        else:
            self._post(SweepDone(len(swept.removed), swept.error, swept.left_images))

    def _note_pull(self, reference: str, image: PinnedImage) -> None:
        now = self._clock.now()
        self._post(
            ImagePulled(
                PulledImage(
                    image_id=image.image_id,
                    reference=reference,
                    digest=image.digest,
                    pulled_at=now,
                    used_at=now,
                )
            )
        )

    def _watch_engine(self) -> None:
        while True:
            try:
                events = self._site.engine.events()
                self._post(EngineWatched())
                for run_id in events:
                    self._post(ContainerChanged(run_id))
            except EngineUnreachable as error:
                self._post(EngineLost(str(error)))
            time.sleep(WATCH_AGAIN_SECONDS)

    def _free_for_images(self) -> int | None:
        return None if self._host.data_root is None else seen_free(self._host.data_root)

    def _space_watch(self) -> SpaceWatch:
        return SpaceWatch(
            places=lambda: places_of(self._settings.state_dir, self._host.data_root),
            least=lambda: self._settings.limits.min_free_disk,
            runs=self._runs,
            folders=self._folders,
            uses=self._uses,
            runtime=self._site.engine,
            post=self._post,
            clock=self._clock,
        )

    def _find_node_facts(self) -> None:
        if not self._settings.share.node_facts:
            self._post(NodeFactsReady({}))
            return
        facts = node_facts(
            self._settings.databases,
            read_columns(self._settings.databases).found if self._settings.share.columns else {},
            policy=self._shared_policy(),
            encrypted=self._identity.encrypted,
        )
        self._post(NodeFactsReady(facts))

    def _shared_policy(self) -> dict[str, object]:
        if not self._settings.share.policy:
            return {}
        return shared(self._settings.policy, own_organization_id=self._identity.organization_id)

    def _show(self, snapshot: Snapshot) -> None:
        self._notifier.status(_in_one_line(snapshot))
        self._notifier.watchdog()
        said = presence.Presence(
            pid=os.getpid(),
            version=__version__,
            node=self._node_name,
            since=self._started_at,
            written_at=self._clock.now(),
            **asdict(snapshot),
        )
        with suppress(OSError):  # `status` sees by itself that it grows old, and why
            self._presence.write(said)


# --- before the first run ------------------------------------------------------------------------------------


def _warn_of_names(policy: Policy) -> None:
    if has_user_names(policy):
        log.warning("user_names_not_told", rule="policy.users", reason=NAMES_NOT_TOLD)


def _warn_of_one_user(settings: Settings) -> None:
    chosen = settings.written is not None and settings.written.container_user is not None
    if settings.container_ids is None and not chosen:
        log.warning("runs_share_user", uid=settings.container_user[0])


def _check_databases(settings: Settings) -> None:
    uid, gid = settings.container_reader
    varies = settings.container_ids is not None
    faults = [
        fault_of(database, uid=uid, gid=gid, agent=this_agent(), uid_varies=varies)
        for database in settings.databases
    ]
    found = tuple(fault for fault in faults if fault)
    if found:
        raise ConfigError("Algorithms could not read every database.", faults=found)


def _fresh_folder(settings: Settings, name: str) -> Path:
    """Give a folder for what is thrown away, without what a power cut left in it."""
    folder = settings.state_dir / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _sealer(key: PrivateKey | None, server: HttpServer) -> Sealer:
    return PlainSealer() if key is None else EnvelopeSealer(key, server.keys.of)


def _largest_body(settings: Settings) -> int:
    """Say what may pass the proxy at once: what a run may write, as text, and what stands around it."""
    return base64_length(settings.limits.output_size) + AROUND_BODY


def _in_background(action: Callable[[], None], *, name: str) -> None:
    threading.Thread(target=action, name=name, daemon=True).start()


def _step_settings(settings: Settings, *, log_mask: LogMask, node_id: int) -> StepSettings:
    return StepSettings(
        log_mask=log_mask,
        log_sharing=settings.share.algorithm_logs,
        extras=settings.extras,
        node_id=node_id,
        node_name=settings.name,
        pull=settings.images.pull,
        relaxations=settings.relaxations,
        limits=settings.container_limits,
        output_size=settings.limits.output_size,
        log_size=settings.limits.log_size,
        disk_size=settings.limits.output_size + settings.limits.tmp_size,
        run_time=settings.limits.run_time,
        registry_patience=REGISTRY_PATIENCE_SECONDS,
        max_image_size=settings.images.max_size,
        min_free_disk=settings.limits.min_free_disk,
        proxy_port=settings.network.proxy_port,
        egress_port=settings.egress_port,
        entrances=settings.entrances,
    )


def _throttled_progress(
    post: Callable[[Message], None], clock: SystemClock
) -> Callable[[RunId, PullProgress], None]:
    last: dict[RunId, float] = {}

    def progress(run_id: RunId, pulled: PullProgress) -> None:
        if clock.monotonic() - last.setdefault(run_id, clock.monotonic()) >= PROGRESS_SECONDS:
            last[run_id] = clock.monotonic()
            post(PullProgressed(run_id, pulled.current, pulled.total))

    return progress


def _waiting_for(what: str, problem: str) -> Snapshot:
    """Give the sign of life of an agent that has not started its work yet."""
    return Snapshot(
        online=False,
        server_problem=problem if what == "server" else "",
        engine_problem=problem if what == "engine" else "",
        waiting=0,
        working=0,
        owed=0,
        oldest_owed_at=None,
        finished=0,
        draining=False,
    )


def _in_one_line(snapshot: Snapshot) -> str:
    presence_word = "online" if snapshot.online else "offline"
    counts = f"{snapshot.working} working, {snapshot.waiting} waiting, {snapshot.owed} reports owed"
    problem = (
        snapshot.disk_problem
        or snapshot.server_problem
        or snapshot.engine_problem
        or snapshot.company_problem
    )
    return f"{presence_word}; {counts}" + (f"; {problem}" if problem else "")
