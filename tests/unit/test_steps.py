"""The steps: each repeatable, each with the ports it needs and no more."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent import steps
from node_agent.admission import Admission
from node_agent.contracts import Vantage6Contract
from node_agent.diskuse import DiskUses
from node_agent.domain import contract
from node_agent.domain.container import (
    ContainerLimits,
    EndedBy,
    Phase,
    PinnedImage,
    PullPolicy,
    PullProgress,
    Relaxation,
)
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.diskuse import Held
from node_agent.domain.lifecycle import Advance, StepResult, Wait
from node_agent.domain.policy import Policy, Restriction
from node_agent.domain.run import BlobId, ContainerId, Outcome, Run, RunId, State, Status
from node_agent.domain.secret import Secret
from node_agent.domain.service import entrances
from node_agent.domain.task import DatabaseRequest, OrganizationId, TaskId
from node_agent.errors import (
    BlobUnreadable,
    ContainerLost,
    DatabaseMissing,
    EngineUnreachable,
    ImageMissing,
    InputChanged,
    InputUnreadable,
    NotAllowed,
    OutputTooLarge,
    RegistryUnreachable,
    RunClosed,
    ServerUnreachable,
    TimeLimit,
)
from node_agent.inputs import PATIENCE_SECONDS
from node_agent.stepports import Ports, StepSettings
from node_agent.store.rundir import DiskRunFolders
from tests.doubles.clock import ManualClock
from tests.doubles.core import (
    DIGEST,
    IMAGE,
    ConfiguredDatabases,
    EngineBook,
    ServerBook,
    StoreBook,
    make_open_run,
    make_run,
    make_task,
)

RUN = RunId(1)
PATIENTS = Database(label="default", type=DatabaseType.CSV, uri="/srv/data/patients.csv")
SETTINGS = StepSettings(
    log_mask=iter,
    node_name="alpha",
    pull=PullPolicy.ALWAYS,
    relaxations=(),
    limits=ContainerLimits(cpus=1, memory=2**30, pids=100, tmp_size=2**20, file_size=2**20),
    output_size=1000,
    log_size=100,
    disk_size=1_000_000,
    run_time=60.0,
    registry_patience=20.0,
    proxy_port=7654,
)


POLICY = Policy(algorithms=("registry.example.org/approved/*", f"registry.example.org/exact/image@{DIGEST}"))


class Bench:
    """Every port of the steps, and the run as it is now."""

    def __init__(self, state_dir: Path) -> None:
        self.server = ServerBook()
        self.engine = EngineBook()
        self.stores = StoreBook()
        self.clock = ManualClock()
        self.unwanted: set[RunId] = set()
        self.progress: list[PullProgress] = []
        self.ports = Ports(
            server=self.server,
            runtime=self.engine,
            folders=DiskRunFolders(state_dir, user=(65534, 65534)),
            databases=ConfiguredDatabases(PATIENTS),
            admission=Admission(
                policy=POLICY,
                own_organization_id=OrganizationId(3),
                server=self.server,
                stores=self.stores,
                folders=DiskRunFolders(state_dir, user=(65534, 65534)),
                clock=self.clock,
            ),
            contract=Vantage6Contract(),
            clock=self.clock,
            settings=SETTINGS,
            wanted=lambda run_id: run_id not in self.unwanted,
            progress=lambda _, progress: self.progress.append(progress),
        )
        self.server.add(make_open_run(1))
        self.ports.folders.store_input(RUN, [b"input"])

    def settle(self, **changes: Any) -> None:
        self.ports = replace(self.ports, settings=replace(self.ports.settings, **changes))

    def do(self, step: str, run: Run) -> StepResult:
        return steps.STEP_FUNCTIONS[step](run, self.ports)

    def go(self, step: str, run: Run) -> Run:
        """Do a step that must advance, and give the run it leads to."""
        result = self.do(step, run)
        assert isinstance(result, Advance)
        return replace(run, state=result.to, entered=self.clock.mark(), **result.facts)

    def running(self, **changes: Any) -> Run:
        run = make_run(1, **changes)
        for step in ("admit", "pull", "create", "start"):
            run = self.go(step, run)
        return run

    def captured(self, **finish: Any) -> Run:
        run = self.running()
        self.engine.finish(RUN, **finish)
        return self.go("observe", run)


@pytest.fixture
def bench(quick_dir: Path) -> Bench:
    return Bench(quick_dir)


# --- admit ----------------------------------------------------------------------------------------------------


def test_an_allowed_run_is_claimed(bench: Bench) -> None:
    run = bench.go("admit", make_run(1))
    assert (run.state, run.claimed_at, run.announced) == (
        State.ADMITTED,
        bench.clock.now(),
        Status.INITIALIZING,
    )
    assert bench.server.entries[RUN].said == [Status.INITIALIZING]


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (make_run(1, fault="The server sent no input."), InputUnreadable),
        (make_run(1, task=make_task(1, image="registry.example.org/evil/image")), NotAllowed),
        (make_run(1, task=make_task(1, image="not an image")), NotAllowed),
        (make_run(1, task=make_task(1, databases=(DatabaseRequest(label="none"),))), DatabaseMissing),
    ],
)
def test_what_may_not_run_is_not_claimed(bench: Bench, run: Run, error: type[Exception]) -> None:
    with pytest.raises(error):
        bench.do("admit", run)
    assert bench.server.entries[RUN].said == []


def test_a_refusal_names_the_image_and_the_rule(bench: Bench) -> None:
    run = make_run(1, task=make_task(1, image="registry.example.org/evil/image"))
    with pytest.raises(NotAllowed, match=r"evil/image.*policy\.algorithms"):
        bench.do("admit", run)


def test_a_run_closed_at_the_server_cannot_be_claimed(bench: Bench) -> None:
    bench.server.close(RUN)
    with pytest.raises(RunClosed):
        bench.do("admit", make_run(1))


# --- announce, verify -----------------------------------------------------------------------------------------


def test_announcing_tells_the_status_of_the_state(bench: Bench) -> None:
    result = bench.do("announce", make_run(1, state=State.RUNNING))
    assert result == Wait({"announced": Status.ACTIVE}, seconds=0)
    assert bench.server.entries[RUN].said == [Status.ACTIVE]


def test_verifying_an_open_run_changes_nothing(bench: Bench) -> None:
    assert bench.do("verify", make_run(1)) == Wait({}, seconds=0)


def test_verifying_a_closed_run_says_so(bench: Bench) -> None:
    bench.server.close(RUN)
    with pytest.raises(RunClosed):
        bench.do("verify", make_run(1))


# --- pull -----------------------------------------------------------------------------------------------------


def test_a_pull_pins_the_image(bench: Bench) -> None:
    run = bench.go("pull", make_run(1, state=State.ADMITTED))
    assert (run.state, run.image_id, run.digest) == (State.PULLED, "image-1", DIGEST)
    assert bench.progress == [PullProgress(current=1, total=2)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(PullPolicy.ALWAYS, "image-1"), (PullPolicy.MISSING, "local"), (PullPolicy.NEVER, "local")],
)
def test_a_local_image_is_used_as_the_owner_wants(bench: Bench, policy: PullPolicy, expected: str) -> None:
    bench.engine.local[IMAGE] = PinnedImage(image_id="local", digest=None)
    bench.settle(pull=policy)
    assert bench.go("pull", make_run(1, state=State.ADMITTED)).image_id == expected


def test_an_exact_image_that_is_here_needs_no_registry(bench: Bench) -> None:
    exact = f"{IMAGE}@{DIGEST}"
    bench.engine.local[exact] = PinnedImage(image_id="local", digest=DIGEST)
    bench.engine.registry_away = True
    run = make_run(1, state=State.ADMITTED, task=make_task(1, image=exact))
    assert bench.go("pull", run).image_id == "local"


@pytest.mark.parametrize("is_new", [True, False])
def test_an_image_that_was_here_before_is_not_noted_as_pulled(bench: Bench, is_new: bool) -> None:
    pulled = PinnedImage(image_id="image-1", digest=DIGEST, is_new=is_new)
    bench.engine.registry[IMAGE] = pulled
    noted: list[tuple[str, PinnedImage]] = []
    bench.ports = replace(bench.ports, pulled=lambda reference, image: noted.append((reference, image)))
    bench.go("pull", make_run(1, state=State.ADMITTED))
    assert noted == ([(IMAGE, pulled)] if is_new else [])


def test_an_image_that_is_not_here_is_not_pulled_against_the_owners_will(bench: Bench) -> None:
    bench.settle(pull=PullPolicy.NEVER)
    with pytest.raises(ImageMissing, match="never"):
        bench.do("pull", make_run(1, state=State.ADMITTED))


def test_a_silent_registry_is_asked_again_for_a_while_only(bench: Bench) -> None:
    bench.engine.registry_away = True
    run = make_run(1, state=State.ADMITTED, entered=bench.clock.mark())
    with pytest.raises(RegistryUnreachable):
        bench.do("pull", run)
    bench.clock.advance(SETTINGS.registry_patience)
    with pytest.raises(ImageMissing, match=r"kept asking for 20 seconds"):
        bench.do("pull", run)


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_wall_clock_that_is_set_changes_nothing_about_a_silent_registry(bench: Bench, jump: float) -> None:
    bench.engine.registry_away = True
    run = bench.go("admit", make_run(1))
    bench.clock.set_wall(by=jump)
    with pytest.raises(RegistryUnreachable):
        bench.do("pull", run)
    bench.clock.advance(SETTINGS.registry_patience)
    with pytest.raises(ImageMissing, match=r"kept asking for 20 seconds"):
        bench.do("pull", run)


def test_a_pull_ends_when_the_run_is_not_wanted_any_more(bench: Bench) -> None:
    bench.unwanted.add(RUN)
    with pytest.raises(RunClosed):
        bench.do("pull", make_run(1, state=State.ADMITTED))


@pytest.mark.parametrize(
    ("digest", "allowed"), [(DIGEST, True), ("sha256:" + "b" * 64, False), (None, False)]
)
def test_the_policy_has_its_last_word_on_the_content(
    bench: Bench, digest: str | None, *, allowed: bool
) -> None:
    image = "registry.example.org/exact/image"
    bench.engine.registry[image] = PinnedImage(image_id="image-2", digest=digest)
    run = make_run(1, state=State.ADMITTED, task=make_task(1, image=image))
    if allowed:
        assert bench.go("pull", run).image_id == "image-2"
    else:
        with pytest.raises(NotAllowed):
            bench.do("pull", run)


# --- create, start --------------------------------------------------------------------------------------------


def test_a_container_is_made_from_the_pinned_image_with_all_limits(bench: Bench) -> None:
    run = make_run(
        1,
        state=State.PULLED,
        image_id="image-1",
        task=make_task(1, databases=(DatabaseRequest(label="default"),)),
    )
    run = bench.go("create", run)
    spec = bench.engine.box_of(RUN).spec
    assert run.container in bench.engine.boxes
    assert (spec.name, spec.run_id, spec.image_id) == ("node-agent-alpha-run-1", RUN, "image-1")
    assert (spec.user, spec.groups, spec.limits) == ((65534, 65534), (1000,), SETTINGS.limits)
    assert (spec.writable_root, spec.capabilities, spec.command) == (False, (), None)
    assert [mount.target for mount in spec.mounts if mount.read_only] == ["/mnt/default.csv"]


def test_what_the_owner_opened_is_told_to_the_runs_that_asked_for_it(bench: Bench) -> None:
    warehouse = Database(label="warehouse", type=DatabaseType.SQL, uri="postgresql://u:p@db.example.org/x")
    bench.ports = replace(bench.ports, databases=ConfiguredDatabases(PATIENTS, warehouse))
    bench.settle(egress_port=7482, entrances=entrances([warehouse], taken=()))
    for number, label in ((1, "warehouse"), (2, "default")):
        task = make_task(number, databases=(DatabaseRequest(label=label),))
        bench.go("create", make_run(number, state=State.PULLED, image_id="image-1", task=task))
    asked, other = (bench.engine.box_of(RunId(number)).spec for number in (1, 2))
    assert asked.gateway_names == ("db.example.org",)
    told = asked.environment["WAREHOUSE_DATABASE_URI"]
    assert told == contract.encode("postgresql://u:p@db.example.org:7490/x")
    assert asked.environment["no_proxy"].endswith("proxyserver,db.example.org")
    assert (other.gateway_names, other.environment["no_proxy"][-11:]) == ((), "proxyserver")


def test_only_the_hash_of_the_token_is_remembered(bench: Bench) -> None:
    run = bench.go("create", make_run(1, state=State.PULLED, image_id="image-1"))
    assert run.token_hash == steps.hash_token("container-token-1")
    assert "container-token-1" not in repr(run)


def test_what_the_owner_relaxed_for_an_image_is_given_to_it(bench: Bench) -> None:
    bench.settle(
        relaxations=(Relaxation(image=IMAGE, image_user=True, writable_root=True, capabilities=("CHOWN",)),)
    )
    bench.go("create", make_run(1, state=State.PULLED, image_id="image-1"))
    spec = bench.engine.box_of(RUN).spec
    assert (spec.user, spec.writable_root, spec.capabilities) == (None, True, ("CHOWN",))


def test_what_is_relaxed_leaves_a_trace_in_the_log(bench: Bench) -> None:
    bench.settle(relaxations=(Relaxation(image=IMAGE, writable_root=True),))
    with capture_logs() as lines:
        bench.go("create", make_run(1, state=State.PULLED, image_id="image-1"))
    assert [(line["event"], line["writable_root"]) for line in lines] == [("hardening_relaxed", True)]


def test_creating_again_adopts_the_container(bench: Bench) -> None:
    run = make_run(1, state=State.PULLED, image_id="image-1")
    assert bench.go("create", run).container == bench.go("create", run).container
    assert bench.engine.made == 1


def test_a_run_whose_image_was_never_pinned_is_lost(bench: Bench) -> None:
    with pytest.raises(ContainerLost):
        bench.do("create", make_run(1, state=State.PULLED))


def test_starting_again_starts_nothing(bench: Bench) -> None:
    run = bench.go("create", make_run(1, state=State.PULLED, image_id="image-1"))
    assert bench.go("start", run).started_at == bench.clock.now()
    bench.go("start", run)
    assert bench.engine.starts[RUN] == 1


@pytest.mark.parametrize("step", ["start", "observe"])
def test_a_run_without_a_container_is_lost(bench: Bench, step: str) -> None:
    with pytest.raises(ContainerLost):
        bench.do(step, make_run(1, state=State.CREATED))


def test_a_container_that_is_gone_before_its_start_is_lost(bench: Bench) -> None:
    run = bench.go("create", make_run(1, state=State.PULLED, image_id="image-1"))
    bench.engine.boxes.clear()
    with pytest.raises(ContainerLost):
        bench.do("start", run)


# --- observe --------------------------------------------------------------------------------------------------


def test_a_container_whose_network_namespace_is_gone_before_its_start_is_made_again(bench: Bench) -> None:
    run = bench.go("create", bench.go("pull", bench.go("admit", make_run(1))))
    assert run.container is not None
    bench.engine.without_namespace.add(run.container)
    started = bench.go("start", run)
    assert (started.state, started.container) == (State.RUNNING, ContainerId("container-2"))
    assert started.token_hash
    assert bench.engine.box_of(RUN).phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("others", "are_one_series"),
    [
        ({}, True),
        ({"init_user_id": 8}, False),
        ({"init_org_id": OrganizationId(9)}, False),
        ({"init_user_name": "ann"}, False),
        ({"id": TaskId(77)}, True),
    ],
)
def test_runs_of_one_image_for_one_person_are_a_series(
    others: Mapping[str, Any], are_one_series: bool
) -> None:
    asked = make_task(1, init_user_id=7, init_org_id=OrganizationId(3))
    run = make_run(1, task=asked, image_id="image-1")
    other = make_run(1, task=replace(asked, **others), image_id="image-1")
    assert (steps.series_of(run) == steps.series_of(other)) is are_one_series
    assert steps.series_of(run) != steps.series_of(replace(run, image_id="image-2"))


def test_runs_of_nobody_in_particular_are_no_series() -> None:
    task = make_task(1, init_user_id=None, init_user_name=None)
    assert steps.series_of(make_run(1, task=task, image_id="image-1")) == ""


def test_a_running_container_is_left_alone(bench: Bench) -> None:
    assert bench.do("observe", bench.running()) == Wait({})


def test_an_ended_container_leaves_its_result_and_its_log(bench: Bench) -> None:
    run = bench.captured(output=b"42", exit_code=0, log=b"hello\n")
    assert (run.state, run.exit_code, run.out_of_memory) == (State.CAPTURED, 0, False)
    result = bench.ports.folders.result_path(RUN)
    log = bench.ports.folders.final_log(RUN, "")
    assert result is not None
    assert result.read_bytes() == b"42"
    assert log is not None
    assert log.read_bytes() == b"hello\n"


def test_observing_again_after_the_capture_gives_the_same(bench: Bench) -> None:
    run = bench.running()
    bench.engine.finish(RUN, output=b"42")
    assert bench.go("observe", run) == bench.go("observe", run)
    assert bench.go("report", _finished(bench.go("observe", run))).state is State.REPORTED
    assert bench.server.entries[RUN].accepted[0].result == b"42"


def test_the_log_is_limited(bench: Bench) -> None:
    bench.captured(log=b"x" * 10_000)
    log = bench.ports.folders.final_log(RUN, "")
    assert log is not None
    assert log.stat().st_size == SETTINGS.log_size


def test_a_container_that_disappeared_is_lost(bench: Bench) -> None:
    run = bench.running()
    bench.engine.boxes.clear()
    with pytest.raises(ContainerLost, match="disappeared"):
        bench.do("observe", run)


@pytest.mark.parametrize(
    ("ended_by", "told"),
    [(EndedBy.SOMEBODY, "docker kill, docker stop or docker rm"), (EndedBy.ENGINE, "stopped or restarted")],
)
def test_what_others_ended_is_lost_and_did_not_crash(bench: Bench, ended_by: EndedBy, told: str) -> None:
    run = bench.running()
    bench.engine.finish(RUN, exit_code=137, log=b"so far\n")
    bench.engine.box_of(RUN).ended_by = ended_by
    with pytest.raises(ContainerLost, match=told):
        bench.do("observe", run)
    log = bench.ports.folders.final_log(RUN, "")
    assert log is not None
    assert log.read_bytes() == b"so far\n"


def test_an_algorithm_whose_time_is_over_while_it_is_paused_is_told_so(bench: Bench) -> None:
    run = bench.running()
    bench.engine.box_of(RUN).paused = True
    assert bench.do("observe", run) == Wait({})
    bench.clock.advance(SETTINGS.run_time + 1)
    with pytest.raises(TimeLimit, match="paused"):
        bench.do("observe", run)


def test_an_algorithm_that_runs_too_long_is_stopped(bench: Bench) -> None:
    run = bench.running()
    bench.clock.advance(SETTINGS.run_time)
    assert bench.do("observe", run) == Wait({})
    bench.clock.advance(1)
    with pytest.raises(TimeLimit, match=r"limits\.run_time"):
        bench.do("observe", run)


def test_a_limit_is_called_what_those_who_asked_call_it(bench: Bench) -> None:
    run = bench.running()
    bench.ports = replace(
        bench.ports, settings=replace(SETTINGS, limit_words={"limits.run_time": "maxJobDuration"})
    )
    bench.clock.advance(61)
    with pytest.raises(TimeLimit, match=r"\(maxJobDuration\)"):
        steps.observe(run, bench.ports)


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_wall_clock_that_is_set_neither_ends_an_algorithm_nor_gives_it_more_time(
    bench: Bench, jump: float
) -> None:
    run = bench.running()
    bench.clock.set_wall(by=jump)
    assert bench.do("observe", run) == Wait({})
    bench.clock.advance(SETTINGS.run_time + 1)
    with pytest.raises(TimeLimit, match=r"after 61 seconds"):
        bench.do("observe", run)


def test_an_algorithm_that_fills_the_disk_is_stopped(bench: Bench) -> None:
    run = bench.running()
    bench.settle(disk_size=10)
    with pytest.raises(OutputTooLarge, match=r"limits\.output_size"):
        bench.do("observe", run)


def test_files_without_a_name_count_toward_the_disk_limit(bench: Bench) -> None:
    run = bench.running()
    asked: list[tuple[ContainerId, int | None]] = []

    def held(container: ContainerId, pid: int | None) -> Held:
        asked.append((container, pid))
        return Held(unnamed=SETTINGS.disk_size, is_complete=True)

    bench.ports = replace(bench.ports, uses=DiskUses(held))
    with pytest.raises(OutputTooLarge, match=r"limits\.tmp_size"):
        steps.observe(run, bench.ports)
    assert asked == [(run.container, None)]


def test_a_run_that_filled_the_disk_gives_it_back_before_its_report(bench: Bench) -> None:
    run = bench.running()
    mount = bench.ports.folders.prepare(RUN, run.task.job, token=Secret("t"), open_to_all=False).private
    bench.go("stop", replace(run, ending=Outcome.TIME_LIMIT))
    assert mount.exists()
    bench.go("stop", replace(run, ending=Outcome.OUTPUT_TOO_LARGE))
    assert not mount.exists()


def test_a_result_that_is_too_large_fails_the_run(bench: Bench) -> None:
    run = bench.running()
    bench.engine.finish(RUN, output=b"x" * 2000)
    with pytest.raises(OutputTooLarge):
        bench.do("observe", run)


# --- filter ---------------------------------------------------------------------------------------------------


def _finished(run: Run) -> Run:
    return replace(run, state=State.FINISHED, outcome=Outcome.COMPLETED, finished_at=1.0)


@pytest.mark.parametrize(
    ("exit_code", "out_of_memory", "outcome", "reason"),
    [
        (0, False, Outcome.COMPLETED, ""),
        (3, False, Outcome.CRASHED, "exit code 3."),
        (137, False, Outcome.CRASHED, "limits.memory"),
        (139, False, Outcome.CRASHED, "(segmentation fault)"),
        (None, False, Outcome.CRASHED, "exit code None"),
        (137, True, Outcome.OUT_OF_MEMORY, "limits.memory"),
        (0, True, Outcome.COMPLETED, ""),
    ],
)
def test_the_exit_code_says_how_a_run_ended(
    bench: Bench, exit_code: int | None, outcome: Outcome, reason: str, *, out_of_memory: bool
) -> None:
    run = replace(bench.captured(), exit_code=exit_code, out_of_memory=out_of_memory)
    run = bench.go("filter", run)
    assert (run.state, run.outcome, run.finished_at) == (State.FINISHED, outcome, bench.clock.now())
    assert reason in run.reason
    assert bool(reason) is bool(run.reason)


def test_an_algorithm_that_wrote_nothing_is_told_so(bench: Bench) -> None:
    run = bench.go("filter", bench.captured(output=b""))
    assert run.outcome is Outcome.COMPLETED
    assert "no output" in run.reason


# --- stop -----------------------------------------------------------------------------------------------------


def to_be_killed(run: Run) -> Run:
    return replace(run, ending=Outcome.KILLED, reason="The run was killed.")


def test_stopping_kills_the_container_and_keeps_its_log(bench: Bench) -> None:
    run = bench.running()
    bench.engine.box_of(RUN).log = b"so far\n"
    run = bench.go("stop", to_be_killed(run))
    assert (run.state, run.outcome) == (State.FINISHED, Outcome.KILLED)
    assert bench.engine.box_of(RUN).phase is Phase.EXITED
    bench.go("report", run)
    assert bench.server.entries[RUN].accepted[0].log == "so far\n[node] The run was killed.\n"


def test_stopping_finds_a_container_the_journal_does_not_know(bench: Bench) -> None:
    run = bench.running()
    forgotten = replace(to_be_killed(run), state=State.PULLED, container=None)
    bench.go("stop", forgotten)
    assert bench.engine.box_of(RUN).phase is Phase.EXITED


@pytest.mark.parametrize("state", [State.RECEIVED, State.ADMITTED, State.PULLED])
def test_stopping_a_run_without_a_container_just_ends_it(bench: Bench, state: State) -> None:
    run = bench.go("stop", to_be_killed(make_run(1, state=state)))
    assert run.outcome is Outcome.KILLED


def test_stopping_a_run_whose_container_disappeared_ends_it(bench: Bench) -> None:
    run = bench.running()
    bench.engine.boxes.clear()
    assert bench.go("stop", replace(run, ending=Outcome.LOST)).outcome is Outcome.LOST


@pytest.mark.parametrize("call", ["find_container", "stop"])
def test_a_run_that_never_started_ends_while_the_engine_hangs_and_what_is_left_goes_later(
    bench: Bench, call: str
) -> None:
    container = bench.running().container
    known = container if call == "stop" else None
    run = to_be_killed(make_run(1, state=State.PULLED, container=known))
    bench.engine.faults.plan(call, EngineUnreachable("no answer"))
    with capture_logs() as logged:
        run = bench.go("stop", run)
    assert run.outcome is Outcome.KILLED
    assert [entry["event"] for entry in logged] == ["container_left_behind"]
    bench.go("remove", bench.go("report", run))
    assert bench.engine.boxes == {}


@pytest.mark.parametrize("state", [State.RECEIVED, State.ADMITTED])
def test_the_engine_is_not_asked_for_the_container_of_a_run_that_can_have_none(
    bench: Bench, state: State
) -> None:
    bench.engine.faults.plan("find_container", EngineUnreachable("not to be called"))
    with capture_logs() as logged:
        assert bench.go("stop", to_be_killed(make_run(1, state=state))).outcome is Outcome.KILLED
    assert logged == []


def test_a_run_at_work_is_not_said_to_have_ended_while_the_engine_hangs(bench: Bench) -> None:
    run = bench.running()
    bench.engine.faults.plan("stop", EngineUnreachable("no answer"))
    with pytest.raises(EngineUnreachable):
        bench.do("stop", to_be_killed(run))


def test_nobody_wants_the_log_of_a_run_closed_at_the_server(bench: Bench) -> None:
    run = bench.running()
    bench.engine.faults.plan("copy_log", EngineUnreachable("not to be called"))
    assert bench.go("stop", replace(run, ending=Outcome.CLOSED)).outcome is Outcome.CLOSED


# --- report, remove -------------------------------------------------------------------------------------------


def test_the_report_carries_result_log_and_times(bench: Bench) -> None:
    run = bench.go("filter", bench.captured(output=b"42", log=b"hello\n"))
    reported = bench.go("report", run)
    assert (reported.state, reported.announced) == (State.REPORTED, Status.COMPLETED)
    (delivered,) = bench.server.entries[RUN].accepted
    assert (delivered.status, delivered.result, delivered.log) == (Status.COMPLETED, b"42", "hello\n")
    assert delivered.started_at == run.claimed_at
    assert delivered.finished_at == run.finished_at


def test_a_run_that_never_began_is_reported_with_one_time(bench: Bench) -> None:
    run = make_run(1, state=State.FINISHED, outcome=Outcome.NOT_ALLOWED, reason="No rule names it.")
    bench.go("report", run)
    (delivered,) = bench.server.entries[RUN].accepted
    assert delivered.started_at == delivered.finished_at == bench.clock.now()
    assert (delivered.result, delivered.log) == (None, "[node] No rule names it.\n")


@pytest.mark.parametrize(
    ("outcome", "leaves"),
    [
        (outcome, outcome in {Outcome.COMPLETED, Outcome.CRASHED, Outcome.OUT_OF_MEMORY})
        for outcome in Outcome
        if outcome is not Outcome.CLOSED
    ],
)
def test_a_result_that_never_passed_the_filter_does_not_leave(
    bench: Bench, outcome: Outcome, *, leaves: bool
) -> None:
    run = replace(bench.captured(output=b"42"), state=State.FINISHED, outcome=outcome, finished_at=1.0)
    bench.go("report", run)
    (delivered,) = bench.server.entries[RUN].accepted
    assert delivered.result == (b"42" if leaves else None)


def test_a_run_closed_at_the_server_is_not_reported(bench: Bench) -> None:
    run = make_run(1, state=State.FINISHED, outcome=Outcome.CLOSED)
    assert bench.do("report", run) == Advance(State.REPORTED, {})
    assert bench.server.entries[RUN].accepted == []


@pytest.mark.parametrize("error", [ServerUnreachable("away"), RunClosed("closed")])
def test_a_report_that_does_not_arrive_says_why(bench: Bench, error: Exception) -> None:
    bench.server.faults.plan("report", error)
    run = make_run(1, state=State.FINISHED, outcome=Outcome.KILLED)
    with pytest.raises(type(error)):
        bench.do("report", run)


def test_removing_leaves_nothing_and_may_be_repeated(bench: Bench, quick_dir: Path) -> None:
    run = _finished(bench.captured())
    for _ in range(2):
        assert bench.do("remove", run) == Advance(State.REMOVED, {})
    assert bench.engine.boxes == {}
    assert list((quick_dir / "runs").iterdir()) == []


def test_removing_finds_a_container_the_journal_does_not_know(bench: Bench) -> None:
    run = replace(_finished(bench.captured()), container=None)
    bench.do("remove", run)
    assert bench.engine.boxes == {}


def test_a_container_that_is_not_ours_is_left_alone(bench: Bench) -> None:
    other = bench.engine.ensure_container(replace(_spec(bench), name="other", run_id=RunId(2)))
    bench.do("remove", make_run(1, state=State.REPORTED))
    assert list(bench.engine.boxes) == [other]


def _spec(bench: Bench) -> Any:
    bench.go("create", make_run(1, state=State.PULLED, image_id="image-1"))
    return bench.engine.box_of(RUN).spec


# --- all of them ----------------------------------------------------------------------------------------------

PREPARED: dict[str, Callable[[Bench], Run]] = {
    "admit": lambda bench: make_run(1),
    "pull": lambda bench: make_run(1, state=State.ADMITTED),
    "start": lambda bench: bench.go("create", make_run(1, state=State.PULLED, image_id="image-1")),
    "filter": lambda bench: bench.captured(),
    "stop": lambda bench: to_be_killed(bench.running()),
    "remove": lambda bench: _finished(bench.captured()),
}


@pytest.mark.parametrize("step", PREPARED)
def test_doing_a_step_again_gives_the_same(bench: Bench, step: str) -> None:
    run = PREPARED[step](bench)
    assert bench.do(step, run) == bench.do(step, run)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("pull", "find_image"),
        ("start", "ensure_started"),
        ("stop", "stop"),
        ("stop", "copy_log"),
        ("remove", "remove"),
    ],
)
def test_a_step_says_when_the_engine_is_away_and_succeeds_later(bench: Bench, step: str, call: str) -> None:
    run = PREPARED[step](bench)
    bench.engine.faults.plan(call, EngineUnreachable("away"))
    with pytest.raises(EngineUnreachable):
        bench.do(step, run)
    assert isinstance(bench.do(step, run), Advance)


def test_an_unknown_container_id_is_not_an_error_for_the_end(bench: Bench) -> None:
    run = replace(to_be_killed(make_run(1, state=State.CREATED)), container=ContainerId("gone"))
    assert bench.go("stop", run).state is State.FINISHED
    bench.do("remove", run)


# --- the blob store -------------------------------------------------------------------------------------------

INPUT = BlobId("input")


class NothingHere(Bench):
    """A run whose input still lies in the server's blob store."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.ports.folders.remove(RUN)
        self.server.blobs[INPUT] = b"from the store"

    def admitted(self) -> Run:
        return self.go("admit", make_run(1, input_blob=INPUT))

    def finished(self, **finish: Any) -> Run:
        run = self.running(input_blob=INPUT)
        self.engine.finish(RUN, **finish)
        return self.go("filter", self.go("observe", run))


@pytest.fixture
def nothing_here(quick_dir: Path) -> NothingHere:
    return NothingHere(quick_dir)


def test_an_input_is_fetched_once_its_run_is_admitted(nothing_here: NothingHere) -> None:
    folders = nothing_here.ports.folders
    run = nothing_here.admitted()
    assert not folders.has_input(RUN)
    nothing_here.go("pull", run)
    assert folders.read_input(RUN, limit=100) == b"from the store"


def test_an_input_that_is_here_is_not_fetched_again(nothing_here: NothingHere) -> None:
    run = nothing_here.admitted()
    nothing_here.go("pull", run)
    nothing_here.server.blobs.clear()
    nothing_here.go("pull", run)


def test_an_input_that_the_server_does_not_find_is_asked_for_again_for_a_while(
    nothing_here: NothingHere,
) -> None:
    run = nothing_here.admitted()
    nothing_here.server.faults.plan("open_input", BlobUnreadable("It is not there."), times=2)
    with pytest.raises(BlobUnreadable):
        nothing_here.do("pull", run)
    nothing_here.clock.advance(PATIENCE_SECONDS)
    with pytest.raises(InputUnreadable, match=r"It is not there\. .* Send the task again"):
        nothing_here.do("pull", run)


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_wall_clock_that_is_set_changes_nothing_about_an_input_that_is_not_found(
    nothing_here: NothingHere, jump: float
) -> None:
    run = nothing_here.admitted()
    nothing_here.server.faults.plan("open_input", BlobUnreadable("It is not there."), times=2)
    nothing_here.clock.set_wall(by=jump)
    with pytest.raises(BlobUnreadable):
        nothing_here.do("pull", run)
    nothing_here.clock.advance(PATIENCE_SECONDS)
    with pytest.raises(InputUnreadable):
        nothing_here.do("pull", run)


def test_an_input_is_asked_for_as_long_as_the_server_does_not_answer(nothing_here: NothingHere) -> None:
    run = nothing_here.admitted()
    nothing_here.clock.advance(100 * PATIENCE_SECONDS)
    nothing_here.server.faults.plan("open_input", ServerUnreachable("away"))
    with pytest.raises(ServerUnreachable):
        nothing_here.do("pull", run)


def test_a_rule_on_methods_has_the_input_fetched_before(nothing_here: NothingHere) -> None:
    nothing_here.server.blobs[INPUT] = b'{"method": "forbidden"}'
    rule = Restriction(image="*", methods=("allowed",))
    admission = replace(nothing_here.ports.admission, policy=replace(POLICY, restrictions=(rule,)))
    nothing_here.ports = replace(nothing_here.ports, admission=admission)
    with pytest.raises(NotAllowed, match="forbidden"):
        nothing_here.admitted()


def test_a_result_is_stored_noted_and_then_reported(nothing_here: NothingHere) -> None:
    run = nothing_here.finished(output=b"42")
    noted = nothing_here.do("report", run)
    assert isinstance(noted, Wait)
    assert noted.seconds == 0
    assert nothing_here.server.entries[RUN].accepted == []
    run = replace(run, **noted.facts)
    assert run.result_blob is not None
    assert nothing_here.server.blobs[run.result_blob] == b"42"
    nothing_here.go("report", run)
    (report,) = nothing_here.server.entries[RUN].accepted
    assert report.stored_as == run.result_blob


def test_the_output_of_a_crash_is_stored_too(nothing_here: NothingHere) -> None:
    noted = nothing_here.do("report", nothing_here.finished(output=b"half", exit_code=1))
    assert isinstance(noted, Wait)
    assert nothing_here.server.blobs[noted.facts["result_blob"]] == b"half"


def test_an_empty_result_is_reported_without_a_blob(nothing_here: NothingHere) -> None:
    nothing_here.go("report", nothing_here.finished(output=b""))
    (report,) = nothing_here.server.entries[RUN].accepted
    assert (report.stored_as, report.result) == (None, None)
    assert set(nothing_here.server.blobs) == {INPUT}


def test_a_run_that_failed_on_its_way_stores_nothing(nothing_here: NothingHere) -> None:
    run = make_run(1, input_blob=INPUT, state=State.FINISHED, outcome=Outcome.FAILED, finished_at=1.0)
    nothing_here.go("report", run)
    assert set(nothing_here.server.blobs) == {INPUT}


def test_an_input_that_comes_slowly_is_left_when_the_run_is_not_wanted_any_more(
    nothing_here: NothingHere,
) -> None:
    nothing_here.server.blobs[BlobId("input-1")] = b"slow"
    run = make_run(1, state=State.ADMITTED, input_blob=BlobId("input-1"))
    nothing_here.unwanted.add(RUN)
    with pytest.raises(RunClosed):
        nothing_here.do("pull", run)
    assert not nothing_here.ports.folders.has_input(RUN)


# --- the input that was judged ---------------------------------------------------------------------------------


def test_the_digest_of_the_judged_input_stands_with_the_run(bench: Bench) -> None:
    digest = hashlib.sha256(b"input").hexdigest()
    assert bench.go("admit", make_run(1)).input_digest == digest
    assert bench.go("pull", make_run(1)).input_digest == digest


def test_a_container_is_not_given_another_input_than_the_one_that_was_judged(
    bench: Bench, quick_dir: Path
) -> None:
    run = bench.go("pull", bench.go("admit", make_run(1)))
    (quick_dir / "runs" / "000000001" / "input").write_bytes(b"forbidden")
    with pytest.raises(InputChanged):
        bench.do("create", run)
    assert not bench.engine.boxes


def test_an_input_from_the_blob_store_is_held_to_the_one_that_was_judged(
    bench: Bench, quick_dir: Path
) -> None:
    bench.ports.folders.remove(RUN)
    blob = BlobId("blob")
    bench.server.blobs[blob] = b"allowed"
    run = bench.go("pull", bench.go("admit", make_run(1, input_blob=blob)))
    assert run.input_digest == hashlib.sha256(b"allowed").hexdigest()
    (quick_dir / "runs" / "000000001" / "input").write_bytes(b"forbidden")
    with pytest.raises(InputChanged):
        bench.do("create", run)
