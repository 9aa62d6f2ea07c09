"""What the attacks share: the fixtures of the tests with a real engine and with a real server."""

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.hostile.faces import hostile_image
from tests.hostile.siege import SERVICE, Siege, siege
from tests.integration.conftest import place, root, session_machine
from tests.interop.conftest import real
from tests.interop.stage import ALGORITHM, NOT_HERE, Stage
from tests.lab.engine import engine
from tests.lab.images import script_image
from tests.parts import or_missing

__all__ = ["place", "real", "root", "session_machine"]


@pytest.fixture(scope="session")
def script() -> Iterator[str]:
    """Return the image of an algorithm that runs the script it is sent."""
    with or_missing(*NOT_HERE), engine() as found:
        client = found.client()
        try:
            yield script_image(client, "interop", ALGORITHM)
        finally:
            client.close()


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
