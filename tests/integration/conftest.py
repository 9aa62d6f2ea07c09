import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.integration.machine import EngineError, Machine, machine
from tests.parts import or_missing


@pytest.fixture(scope="session")
def session_machine() -> Iterator[Machine]:
    with or_missing(EngineError), machine(f"it-{os.getpid()}") as made:
        yield made


@pytest.fixture
def place(session_machine: Machine) -> Iterator[Machine]:
    """The session's engine and network, without containers of an earlier test."""
    yield session_machine
    session_machine.clear()


@pytest.fixture
def root(missing: Callable[[str], NoReturn]) -> None:
    """The firewall rule needs root."""
    if os.geteuid() != 0:
        missing("root, for the firewall rule")
