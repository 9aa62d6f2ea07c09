"""What the attacks share: the fixtures of the tests with a real engine and with a real server."""

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.hostile.faces import hostile_image
from tests.hostile.siege import SERVICE, Siege, siege
from tests.integration.conftest import place, root, session_machine
from tests.interop.conftest import real
from tests.interop.stage import Stage

__all__ = ["place", "real", "root", "session_machine"]


@pytest.fixture(scope="module", params=["as root", "as the service's user"])
def besieged(
    request: pytest.FixtureRequest, real: Stage, missing: Callable[[str], NoReturn]
) -> Iterator[Siege]:
    """An agent with two people who send it hostile tasks; once as root, once as an ordinary user in the engine's group."""
    if os.geteuid() != 0:
        missing("root, to become the service's user")
    user = 0 if request.param == "as root" else SERVICE
    with siege(real, user=user, image=hostile_image(real.docker)) as made:
        yield made
