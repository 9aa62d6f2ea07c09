import os
from collections.abc import Iterator

import pytest

from tests.integration.machine import EngineError, Machine, machine
from tests.parts import or_missing


@pytest.fixture(scope="session")
def hostile_machine() -> Iterator[Machine]:
    with or_missing(EngineError), machine(f"hostile-{os.getpid()}") as made:
        yield made


@pytest.fixture
def place(hostile_machine: Machine) -> Iterator[Machine]:
    """The session's engine and network, without containers of an earlier test."""
    yield hostile_machine
    hostile_machine.clear()
