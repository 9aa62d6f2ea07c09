"""What of this machine a test needs: in CI a missing part is a failure, elsewhere the test is skipped.

Owns this rule, and the engine as tests are given it. Must not know any test.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

import docker
import pytest

from tests.lab.engine import EngineError, engine


def say_missing(what: object) -> NoReturn:
    """End the test for want of *what*: a failure in CI, skipped here."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {what}")
    pytest.skip(f"missing: {what}")


@contextlib.contextmanager
def or_missing(*signs: type[Exception]) -> Iterator[None]:
    """Take these errors for the sign that a part is missing; to be put around nothing but finding it."""
    try:
        yield
    except signs as error:
        say_missing(error)


@contextlib.contextmanager
def engine_client() -> Iterator[docker.DockerClient]:
    """Provide a client of the machine's engine, which is started when it does not run."""
    with contextlib.ExitStack() as stack:
        with or_missing(EngineError):
            found = stack.enter_context(engine())
        yield stack.enter_context(contextlib.closing(found.client()))
