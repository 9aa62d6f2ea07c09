"""What all tests share: places to write, an ordinary user, a clock, and the rule on missing machines."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from tests.doubles.clock import ManualClock
from tests.parts import say_missing

NOBODY = 65534
LONG_FILES = (
    "test_crash_points",
    "test_crash_kinds",
    "test_package",
    "test_service",
    "test_state_dir",
    "test_engine_faults",
    "test_outages",
    "test_two_agents",
    "test_beginning",
    "test_pruning",
    "test_soak",
    "test_idle",
)
"""Files that take a minute or more: begun first, so that no worker is left with one of them at the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first and quick ones last; within that, the order stays as it was shuffled."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.path.stem in LONG_FILES:
        return LONG_FILES.index(item.path.stem)
    return len(LONG_FILES) + (item.path.parent.name == "unit")


@pytest.fixture(autouse=True)
def _log_as_at_the_start() -> Iterator[None]:
    """Commands that run inside the test process configure the log for all that follows."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def quick_dir() -> Iterator[Path]:
    """A folder in memory where there is one: syncing to disk is the slowest thing the store does."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(params=["root", "an ordinary user"])
def own_dir(request: pytest.FixtureRequest, quick_dir: Path) -> Iterator[Path]:
    """A folder of the user the test then runs as; once as root, once without any special right."""
    if request.param == "root":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        yield quick_dir
        return
    if os.geteuid() != 0:
        yield quick_dir
        return
    os.chown(quick_dir, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield quick_dir
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """What a test says when the machine lacks what it needs: skipped here, a failure in CI."""

    return say_missing
