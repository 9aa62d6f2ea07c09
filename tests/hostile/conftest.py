"""Attacks with real parts: each test tries something and says what holds."""

from collections.abc import Iterator

import pytest

from tests.interop.stage import ALGORITHM, NOT_HERE
from tests.lab.engine import engine
from tests.lab.images import script_image
from tests.parts import or_missing


@pytest.fixture(scope="session")
def script() -> Iterator[str]:
    """Return the image of an algorithm that runs the script it is sent."""
    with or_missing(*NOT_HERE), engine() as found:
        client = found.client()
        try:
            yield script_image(client, "interop", ALGORITHM)
        finally:
            client.close()
