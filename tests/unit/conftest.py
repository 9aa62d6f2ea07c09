"""What all unit tests share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _files_are_closed_to_other_users() -> Iterator[None]:
    """Write files as an owner with care does: a configuration with a secret that everybody can read is refused."""
    before = os.umask(0o027)
    yield
    os.umask(before)
