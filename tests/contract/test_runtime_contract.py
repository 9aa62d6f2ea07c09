"""What the core expects of a container engine: held against the fake one always, and against the real one."""

import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

import pytest

from node_agent.domain.container import (
    ContainerLimits,
    ContainerReport,
    ContainerSpec,
    Phase,
    run_container_name,
)
from node_agent.domain.ports import Runtime
from node_agent.domain.run import ContainerId, RunId
from node_agent.errors import ContainerLost, ImageMissing, RunClosed, StartFailed
from tests.doubles.fake_runtime import Ending, FakeRuntime, behaviour_by_command
from tests.integration.machine import LIMITS, EngineError, Machine, machine, small_image
from tests.lab.registry import Pushed, Registry, registry
from tests.parts import or_missing

PYTHON = ("python3", "-S", "-u", "-c")
SUCCEED = (*PYTHON, "print('all is well')")
FAIL = (*PYTHON, "raise SystemExit(3)")
TALK = (*PYTHON, "print('begin' + 'x' * 5000 + 'end')")
SPEAK = (*PYTHON, "print('one'); print('two'); print('three')")
GO_ON = (*PYTHON, "import time; time.sleep(300)")
NO_PROGRAM = ("/no/such/program",)


class Stage(Protocol):
    """An engine with a registry that has one image."""

    runtime: Runtime
    offered: str
    missing: str
    digest: str

    def local_image(self) -> str:
        """Give the id of an image on this machine that can do what the commands above say."""

    def user(self) -> tuple[int, int]:
        """Whom containers run as."""

    def ended(self, container: ContainerId) -> ContainerReport:
        """Wait for the end of a container."""

    @property
    def name(self) -> str:
        """The agent's name."""


class FakeStage:
    name = "alpha"
    offered = "registry.example.org/algorithm:1"
    missing = "registry.example.org/nothing:1"

    def __init__(self) -> None:
        self.fake = FakeRuntime(
            self.name,
            behaviour=behaviour_by_command(
                {
                    SUCCEED: Ending(log=b"all is well\n"),
                    FAIL: Ending(exit_code=3),
                    SPEAK: Ending(log=b"one\ntwo\nthree\n"),
                    TALK: Ending(log=b"begin" + b"x" * 5000 + b"end\n"),
                    GO_ON: None,
                }
            ),
        )
        self.runtime: Runtime = self.fake
        self.digest = str(self.fake.offer(self.offered).digest)

    def local_image(self) -> str:
        return self.fake.keep("local:1", b"local").image_id

    def user(self) -> tuple[int, int]:
        return (1, 1)

    def ended(self, container: ContainerId) -> ContainerReport:
        report = self.runtime.inspect(container)
        assert report is not None
        assert report.phase is Phase.EXITED
        return report


class RealStage:
    def __init__(self, place: Machine, shop: Registry, pushed: Pushed) -> None:
        self._place = place
        self.runtime: Runtime = place.engine
        self.name = place.name
        self.offered = pushed.reference
        self.missing = f"{shop.host}/nothing:1"
        self.digest = pushed.digest

    def local_image(self) -> str:
        return self._place.image_id

    def user(self) -> tuple[int, int]:
        return (64198, 64198)

    def ended(self, container: ContainerId) -> ContainerReport:
        return self._place.ended(container)


@contextmanager
def real_parts() -> Iterator[tuple[Machine, Registry, Pushed]]:
    with machine(f"contract-{os.getpid()}") as place, registry() as shop:
        source = small_image(place.client, place.name, "algorithm")
        yield place, shop, shop.push(place.client, source, f"contract-{os.getpid()}:1")


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[Machine, Registry, Pushed]]:
    with ExitStack() as stack:
        parts: AbstractContextManager[tuple[Machine, Registry, Pushed]] = real_parts()
        with or_missing(EngineError):
            found = stack.enter_context(parts)
        yield found


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "fake":
        yield FakeStage()
        return
    place, shop, pushed = request.getfixturevalue("real")
    yield RealStage(place, shop, pushed)
    place.clear()
    for reference in (pushed.reference, pushed.pinned):
        if place.engine.find_image(reference) is not None:
            place.client.images.remove(reference)


def spec(stage: Stage, run_id: int, command: tuple[str, ...]) -> ContainerSpec:
    return ContainerSpec(
        name=run_container_name(stage.name, RunId(run_id)),
        run_id=RunId(run_id),
        image_id=stage.local_image(),
        user=stage.user(),
        groups=(),
        environment={},
        mounts=(),
        limits=LIMITS,
        command=command,
    )


def started(stage: Stage, run_id: int, command: tuple[str, ...]) -> ContainerId:
    container = stage.runtime.ensure_container(spec(stage, run_id, command))
    stage.runtime.ensure_started(container)
    return container


# --- images ---------------------------------------------------------------------------------------------------


def test_an_image_nobody_pulled_is_not_found(stage: Stage) -> None:
    assert stage.runtime.find_image(stage.offered) is None


def test_a_pulled_image_is_found_again_with_the_digest_the_registry_named(stage: Stage) -> None:
    assert stage.runtime.registry_digest(stage.offered) == stage.digest
    pulled = stage.runtime.pull_image(stage.offered, wanted=lambda: True, progress=lambda _: None)
    assert pulled.digest == stage.digest
    assert stage.runtime.find_image(stage.offered) == pulled


def test_an_image_is_pulled_by_its_digest(stage: Stage) -> None:
    pinned = f"{stage.offered.rpartition(':')[0]}@{stage.digest}"
    assert (
        stage.runtime.pull_image(pinned, wanted=lambda: True, progress=lambda _: None).digest == stage.digest
    )


def test_an_image_that_does_not_exist_is_missing(stage: Stage) -> None:
    with pytest.raises(ImageMissing, match="nothing:1"):
        stage.runtime.pull_image(stage.missing, wanted=lambda: True, progress=lambda _: None)
    with pytest.raises(ImageMissing):
        stage.runtime.registry_digest(stage.missing)


def test_a_pull_nobody_wants_any_more_is_called_off(stage: Stage) -> None:
    with pytest.raises(RunClosed):
        stage.runtime.pull_image(stage.offered, wanted=lambda: False, progress=lambda _: None)


def test_a_pull_tells_how_far_it_is(stage: Stage) -> None:
    seen = []
    stage.runtime.pull_image(stage.offered, wanted=lambda: True, progress=seen.append)
    assert seen
    assert seen[-1].current == seen[-1].total


# --- containers -----------------------------------------------------------------------------------------------


def test_a_created_container_waits_to_be_started(stage: Stage) -> None:
    container = stage.runtime.ensure_container(spec(stage, 1, SUCCEED))
    report = stage.runtime.inspect(container)
    assert report is not None
    assert (report.run_id, report.phase, report.started_at) == (1, Phase.CREATED, None)


def test_a_container_is_created_once(stage: Stage) -> None:
    wanted = spec(stage, 1, SUCCEED)
    assert stage.runtime.ensure_container(wanted) == stage.runtime.ensure_container(wanted)
    assert len(stage.runtime.list_containers()) == 1


def test_a_container_left_under_other_settings_is_made_anew(stage: Stage) -> None:
    wanted = spec(stage, 1, SUCCEED)
    before = stage.runtime.ensure_container(wanted)
    stricter: ContainerLimits = replace(wanted.limits, pids=10)
    assert stage.runtime.ensure_container(replace(wanted, limits=stricter)) != before
    assert len(stage.runtime.list_containers()) == 1


def test_a_container_that_already_ran_under_other_settings_is_refused(stage: Stage) -> None:
    stage.ended(started(stage, 1, SUCCEED))
    wanted = spec(stage, 1, SUCCEED)
    with pytest.raises(StartFailed):
        stage.runtime.ensure_container(replace(wanted, limits=replace(wanted.limits, pids=10)))
    assert len(stage.runtime.list_containers()) == 1


def test_a_container_that_ended_is_not_started_again(stage: Stage) -> None:
    container = started(stage, 1, SUCCEED)
    before = stage.ended(container)
    stage.runtime.ensure_started(container)
    assert stage.runtime.inspect(container) == before


def test_the_exit_code_and_the_times_are_reported(stage: Stage) -> None:
    report = stage.ended(started(stage, 1, FAIL))
    assert report.exit_code == 3
    assert report.started_at is not None
    assert report.finished_at is not None
    assert report.finished_at >= report.started_at
    assert not report.out_of_memory


def test_a_stopped_container_has_ended(stage: Stage) -> None:
    container = started(stage, 1, GO_ON)
    running = stage.runtime.inspect(container)
    assert running is not None
    assert running.phase is Phase.RUNNING
    stage.runtime.stop(container)
    report = stage.ended(container)
    assert report.exit_code == 137
    assert not report.out_of_memory


def test_stopping_and_removing_may_be_repeated(stage: Stage) -> None:
    container = started(stage, 1, GO_ON)
    stage.runtime.stop(container)
    stage.runtime.stop(container)
    stage.runtime.remove(container)
    stage.runtime.remove(container)
    stage.runtime.stop(container)
    assert stage.runtime.inspect(container) is None
    assert stage.runtime.list_containers() == ()


def test_a_running_container_can_be_removed(stage: Stage) -> None:
    container = started(stage, 1, GO_ON)
    stage.runtime.remove(container)
    assert stage.runtime.inspect(container) is None


def test_a_container_is_found_by_exactly_its_run(stage: Stage) -> None:
    long = stage.runtime.ensure_container(spec(stage, 12, SUCCEED))
    assert stage.runtime.find_container(RunId(1)) is None
    short = stage.runtime.ensure_container(spec(stage, 1, SUCCEED))
    assert stage.runtime.find_container(RunId(1)) == short
    assert stage.runtime.find_container(RunId(12)) == long


def test_a_container_that_is_gone_cannot_be_started(stage: Stage) -> None:
    container = stage.runtime.ensure_container(spec(stage, 1, SUCCEED))
    stage.runtime.remove(container)
    with pytest.raises(ContainerLost):
        stage.runtime.ensure_started(container)


def test_a_program_that_is_not_in_the_image_fails_the_start_each_time(stage: Stage) -> None:
    container = stage.runtime.ensure_container(spec(stage, 1, NO_PROGRAM))
    for _ in range(2):
        with pytest.raises(StartFailed, match="no such"):
            stage.runtime.ensure_started(container)


def test_an_image_that_is_gone_fails_the_creation(stage: Stage) -> None:
    wanted = replace(spec(stage, 1, SUCCEED), image_id="sha256:" + "0" * 64)
    with pytest.raises(StartFailed, match="image"):
        stage.runtime.ensure_container(wanted)


# --- logs and events ------------------------------------------------------------------------------------------


def test_a_short_log_is_copied_whole(stage: Stage) -> None:
    container = started(stage, 1, SUCCEED)
    stage.ended(container)
    into = io.BytesIO()
    stage.runtime.copy_log(container, into, limit=1000, mask=iter)
    assert into.getvalue() == b"all is well\n"


def test_a_long_log_keeps_its_head_and_tail(stage: Stage) -> None:
    container = started(stage, 1, TALK)
    stage.ended(container)
    into = io.BytesIO()
    stage.runtime.copy_log(container, into, limit=1000, mask=iter)
    assert len(into.getvalue()) <= 1000
    assert into.getvalue().startswith(b"beginxxx")
    assert into.getvalue().endswith(b"xxxend\n")
    assert b"bytes of the log are left out" in into.getvalue()


def test_the_end_of_a_container_is_an_event(stage: Stage) -> None:
    events = stage.runtime.events()
    started(stage, 7, SUCCEED)
    # Events of the last seconds are told again, since a hint too many does no harm.
    assert next(event for event in events if event == 7) == 7


def test_the_removal_of_a_container_is_an_event(stage: Stage) -> None:
    container = stage.runtime.ensure_container(spec(stage, 8, SUCCEED))
    events = stage.runtime.events()
    stage.runtime.remove(container)
    assert next(event for event in events if event == 8) == 8


def test_a_followed_log_is_whole_and_ends_with_its_container(stage: Stage) -> None:
    container = started(stage, 22, TALK)
    entries = list(stage.runtime.follow_log(container, since=""))
    assert b"".join(entry.content for entry in entries) == b"begin" + b"x" * 5000 + b"end\n"
    assert stage.ended(container).exit_code == 0


def test_a_log_is_followed_on_behind_an_entry_without_repeating_it(stage: Stage) -> None:
    container = started(stage, 23, SPEAK)
    stage.ended(container)
    entries = list(stage.runtime.follow_log(container, since=""))
    assert [entry.content for entry in entries] == [b"one\n", b"two\n", b"three\n"]
    later = list(stage.runtime.follow_log(container, since=entries[0].at))
    assert later == entries[1:]


def test_the_log_of_a_container_that_is_gone_is_empty(stage: Stage) -> None:
    assert list(stage.runtime.follow_log(ContainerId("0" * 64), since="")) == []
