"""Folders for what the server sends and memory should not hold; each is gone when its time is over.

Owns their making and removal. Must not know what is put in them.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node_agent.errors import DiskFull


class SpoolFolder:
    """One folder that only this process may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def discard(self) -> None:
        """Remove it with everything in it; already gone is fine."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def kept_when_good(self) -> Iterator["SpoolFolder"]:
        """Give a folder inside this one, and take it away again when what fills it fails."""
        inner = _new_folder(self.path)
        try:
            yield inner
        except BaseException:
            inner.discard()
            raise


class Spool:
    """Where such folders are made: under *root*, or with the system's temporary files."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    @contextmanager
    def folder(self) -> Iterator[SpoolFolder]:
        """Give a folder for the length of a block."""
        made = _new_folder(self._root)
        try:
            yield made
        finally:
            made.discard()


def _new_folder(inside: Path | None) -> SpoolFolder:
    try:
        if inside is not None:
            inside.mkdir(mode=0o700, parents=True, exist_ok=True)
        return SpoolFolder(Path(tempfile.mkdtemp(prefix="answer-", dir=inside)))
    except OSError as error:
        raise DiskFull(
            f"No folder for answers of the server can be made in {inside or tempfile.gettempdir()}: {error.strerror}.",
            hint="Free some space where the state directory is; the work goes on by itself.",
        ) from error
