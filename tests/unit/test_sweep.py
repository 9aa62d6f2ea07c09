"""The sweep: everything that may go goes, nothing else does, and one failure does not keep the rest."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node_agent.domain.container import Phase
from node_agent.domain.keeping import DiskUse, ImageKeeping, PulledImage, Why
from node_agent.domain.ports import ImageRemoval, Leftover
from node_agent.domain.run import ContainerId, RunId
from node_agent.errors import DiskFull, EngineUnreachable
from node_agent.runtable import RunTable
from node_agent.store.rundir import DiskRunFolders
from node_agent.sweep import FAILURES_IN_A_ROW, Images, Sweep
from tests.doubles.clock import ManualClock
from tests.doubles.core import Box, EngineBook, Faults, make_run, make_task
from tests.unit.test_keeping import image as pulled_image
from tests.unit.test_runtime_spec import spec

DAY = 86_400.0


@dataclass
class RemainsBook:
    """What is left on the engine, in memory."""

    found: list[Leftover] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)
    present: dict[str, int] = field(default_factory=dict)
    filling: DiskUse | None = None
    faults: Faults = field(default_factory=Faults)
    meanwhile: Callable[[], None] = lambda: None
    removed: list[str] = field(default_factory=list)

    def leftovers(self) -> tuple[Leftover, ...]:
        self.faults.meet("leftovers")
        return tuple(self.found)

    def remove_leftover(self, leftover: Leftover) -> bool:
        self.faults.meet("remove_leftover")
        if leftover.id in self.in_use:
            return False
        self.removed.append(leftover.id)
        return True

    def image_sizes(self) -> dict[str, int]:
        return self.present

    def used_images(self) -> frozenset[str]:
        return frozenset(self.in_use)

    def disk(self) -> DiskUse | None:
        return self.filling

    def remove_image(self, names: Iterable[PulledImage], *, needed: Callable[[], bool]) -> ImageRemoval:
        self.faults.meet("remove_image")
        self.meanwhile()
        if needed():
            return ImageRemoval.IN_USE
        self.removed += {name.image_id for name in names}
        return ImageRemoval.GONE


class Room:
    """One agent's engine, folders and open runs."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.clock = ManualClock()
        self.engine = EngineBook()
        self.remains = RemainsBook()
        self.folders = DiskRunFolders(state_dir, user=(1, 1))
        self.runs = RunTable()
        self.pulled: list[PulledImage] = []

    def sweep(self) -> Sweep:
        images = Images(
            remains=self.remains,
            pulled=lambda: self.pulled,
            is_needed=self.runs.needs_image,
            keeping=ImageKeeping(seconds=30 * DAY, disk_pressure=85),
        )
        return Sweep(
            runtime=self.engine,
            folders=self.folders,
            clock=self.clock,
            run_is_open=self.runs.is_open,
            job_is_open=self.runs.job_is_open,
            keep_folders=DAY,
            images=images,
        )

    def put_container(self, run_id: int) -> None:
        name = ContainerId(f"container-{run_id}")
        self.engine.boxes[name] = Box(replace(spec(), run_id=RunId(run_id), name=name), Phase.RUNNING)

    def put_folder(self, run_id: int) -> None:
        self.folders.store_input(RunId(run_id), [b"x"])

    def kinds(self) -> list[str]:
        return [stray.kind for stray in self.sweep().find()]


@pytest.fixture
def room(quick_dir: Path) -> Room:
    made = Room(quick_dir)
    # folders have the machine's times
    made.clock.advance(4_000_000_000.0)
    return made


def test_a_clean_place_has_nothing_to_remove(room: Room) -> None:
    assert room.sweep().do().removed == ()


def test_what_is_shown_is_what_goes(room: Room) -> None:
    room.put_container(1)
    room.put_folder(1)
    room.remains.found = [Leftover(kind="volume", id="v", name="v")]
    room.pulled = [pulled_image("a", unused_for=0)]
    shown = list(room.sweep().find())
    assert [stray.kind for stray in shown] == ["container", "run folder", "volume", "image"]
    assert room.remains.removed == []
    with capture_logs() as logged:
        swept = room.sweep().do()
    assert swept.removed == tuple(shown)
    assert swept.left_images == ("a",)
    assert [(line["kind"], line["why"]) for line in logged] == [
        (stray.kind, str(stray.why)) for stray in shown
    ]
    assert room.engine.boxes == {}
    assert room.remains.removed == ["v", "a"]


def test_an_open_run_keeps_its_container_its_folder_and_its_image(room: Room) -> None:
    room.put_container(1)
    room.put_folder(1)
    room.runs.keep(make_run(1, image_id="a"))
    room.pulled = [pulled_image("a", unused_for=0)]
    assert room.kinds() == []


def test_an_open_run_that_is_pinned_to_nothing_yet_keeps_every_image_of_that_name(room: Room) -> None:
    room.runs.keep(make_run(1, task=make_task(image="r/a:2")))
    room.pulled = [pulled_image("a", unused_for=0, reference="r/a:1"), pulled_image("b", unused_for=0)]
    assert [stray.name for stray in room.sweep().find()] == ["r/b:1"]


def test_an_image_any_container_is_made_from_stays_and_does_not_shield_others(room: Room) -> None:
    room.pulled = [pulled_image("a", unused_for=9), pulled_image("b", unused_for=0)]
    room.remains.in_use = {"a"}
    assert [stray.name for stray in room.sweep().find()] == ["r/b:1"]


def test_a_run_that_comes_at_the_last_moment_keeps_its_image(room: Room) -> None:
    room.pulled = [pulled_image("a", unused_for=0)]
    room.remains.meanwhile = lambda: room.runs.keep(make_run(1, image_id="a"))
    swept = room.sweep().do()
    assert (swept.removed, swept.left_images, swept.error) == ((), (), None)


def test_what_turns_out_to_be_in_use_stays_without_being_an_error(room: Room) -> None:
    room.remains.found = [Leftover(kind="volume", id="v", name="v")]
    room.remains.in_use = {"v"}
    swept = room.sweep().do()
    assert (swept.removed, swept.error) == ((), None)


def test_one_thing_that_cannot_be_removed_does_not_keep_the_others(room: Room) -> None:
    room.remains.found = [Leftover(kind="volume", id=name, name=name) for name in "abc"]
    room.pulled = [pulled_image("i", unused_for=0)]
    room.remains.faults.plan("remove_leftover", EngineUnreachable("stuck"))
    swept = room.sweep().do()
    assert [stray.name for stray in swept.removed] == ["b", "c", "r/i:1"]
    assert str(swept.error) == "stuck"


def test_an_engine_that_fails_again_and_again_is_asked_no_more_for_now(room: Room) -> None:
    room.remains.found = [Leftover(kind="volume", id=name, name=name) for name in "abcde"]
    room.remains.faults.plan("remove_leftover", EngineUnreachable("away"), times=FAILURES_IN_A_ROW)
    assert room.sweep().do().removed == ()
    assert [stray.name for stray in room.sweep().do().removed] == ["a", "b", "c", "d", "e"]


def test_a_container_that_cannot_be_removed_keeps_every_folder(room: Room) -> None:
    room.put_container(1)
    room.put_folder(1)
    room.engine.faults.plan("remove", EngineUnreachable("stuck"))
    assert room.sweep().do().removed == ()
    assert room.folders.has_input(RunId(1))
    assert [stray.kind for stray in room.sweep().do().removed] == ["container", "run folder"]


def test_an_engine_that_does_not_list_leaves_everything_as_it_is(room: Room) -> None:
    room.put_folder(1)
    room.engine.faults.plan("list_containers", EngineUnreachable("away"))
    swept = room.sweep().do()
    assert (swept.removed, str(swept.error)) == ((), "away")


def test_reported_runs_leave_result_and_log_where_the_owner_keeps_them(quick_dir: Path) -> None:
    room = Room(quick_dir)
    folders = DiskRunFolders(quick_dir, user=(1, 1), keep_seconds=DAY)
    for _ in range(2):  # a number may come again
        folders.store_input(RunId(1), [b"x"])
        (quick_dir / "runs" / "000000001" / "mount" / "task-000000001").mkdir(parents=True)
        (quick_dir / "runs" / "000000001" / "result").write_bytes(b"42")
        folders.retire(RunId(1))
        folders.retire(RunId(1))
    kept = sorted((quick_dir / "kept").iterdir())
    assert [sorted(path.name for path in folder.iterdir()) for folder in kept] == [["input", "result"]] * 2
    assert list((quick_dir / "runs").iterdir()) == []
    room.clock.advance(4_000_000_000.0)
    assert [(stray.kind, stray.why) for stray in room.sweep().do().removed] == [
        ("kept folder", Why.EXPIRED)
    ] * 2
    assert list((quick_dir / "kept").iterdir()) == []


def test_nothing_is_kept_unless_the_owner_wants_it(room: Room, quick_dir: Path) -> None:
    room.put_folder(1)
    room.folders.retire(RunId(1))
    assert list((quick_dir / "runs").iterdir()) == []
    assert not (quick_dir / "kept").exists()


def test_a_full_disk_is_not_filled_further_by_what_is_only_kept(quick_dir: Path) -> None:
    class FullFolders(DiskRunFolders):
        def _put_aside(self, run_id: RunId) -> None:
            raise DiskFull("full")

    folders = FullFolders(quick_dir, user=(1, 1), keep_seconds=DAY)
    folders.store_input(RunId(1), [b"x"])
    folders.retire(RunId(1))
    assert list((quick_dir / "runs").iterdir()) == []
