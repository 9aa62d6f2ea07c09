"""How much a tree of an algorithm takes, and its removal: through descriptors alone, and within bounds."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from node_agent.errors import FolderBusy, OutputTooLarge
from node_agent.store.untrusted.opening import NOT_THERE, open_folder, open_unlocked

MAX_DEPTH = 100
"""Each level of a walk costs an open descriptor."""
MAX_ENTRIES = 5_000_000
LONGEST_REMOVAL = 60.0
"""Seconds after which a removal is interrupted: whoever still writes into the tree must not hold a step."""
_BLOCK = 512  # the unit of st_blocks, whatever the file system's own is
_SMALLEST = 4096  # what an entry costs at least, so that a million empty files count
_AT_ONCE = 1000
# somebody was quicker: the next pass sees what is there then
_CHANGED = NOT_THERE | {errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EPERM}


# --- measuring ------------------------------------------------------------------------------------------------


def tree_size(root: Path, *, most: int = MAX_ENTRIES) -> int:
    """Return how much disk the tree under *root*, a folder in a folder of ours, takes.

    Raises OutputTooLarge when it is nested too deeply, or has more than *most* entries.
    """
    return _Measure(most).of(root)


class _Measure:
    """One walk through a tree."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries = 0

    def of(self, root: Path) -> int:
        """Return the bytes of everything below *root*."""
        return self._inside(root, None, depth=0)

    def _inside(self, name: str | Path, folder: int | None, *, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise OutputTooLarge(
                f"The algorithm was stopped: it nested folders more than {MAX_DEPTH} deep, "
                "and this node cannot count what lies in them."
            )
        opened = _open_to_count(name, folder)
        if opened is None:
            return 0
        try:
            size, folders = self._entries_of(opened)
            return size + sum(self._inside(inner, opened, depth=depth + 1) for inner in folders)
        finally:
            os.close(opened)

    def _entries_of(self, folder: int) -> tuple[int, list[str]]:
        size, folders = 0, []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._count_one()
                found = _seen(entry.name, folder)
                if found is None:
                    continue
                size += max(found.st_blocks * _BLOCK, _SMALLEST)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(entry.name)
        return size, folders

    def _count_one(self) -> None:
        self._entries += 1
        if self._entries > self._most:
            raise OutputTooLarge(
                f"The algorithm was stopped: it made more than {self._most:,} files, "
                "and this node counts no more than that."
            )


def _seen(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise


def _open_to_count(name: str | Path, folder: int | None) -> int | None:
    try:
        # what lies in a folder that the algorithm locked takes disk all the same
        return open_unlocked(name, folder, mode=0o700)
    except PermissionError:
        return None


# --- removing -------------------------------------------------------------------------------------------------


def remove_tree(root: Path, *, now: Callable[[], float] = time.monotonic) -> None:
    """Delete *root*, a folder in a folder of ours, with everything below it; already gone is fine.

    Raises FolderBusy when somebody keeps writing there, or when what lies there cannot be deleted by this user; what was
    deleted stays so.
    """
    parent = open_folder(root.parent)
    if parent is None:
        return
    try:
        with _trouble_named(root):
            _Removal(root.name, parent, until=now() + LONGEST_REMOVAL, now=now).do()
    finally:
        os.close(parent)


@contextmanager
def _trouble_named(root: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise FolderBusy(
            f"The folder {root} cannot be removed now: {error.strerror}.",
            hint="The removal is tried again by itself.",
        ) from error
    except TimeoutError as error:
        raise FolderBusy(
            f"The folder {root} is not empty after {LONGEST_REMOVAL:.0f} seconds of deleting.",
            hint="The removal goes on by itself.",
        ) from error


class _Removal:
    """Deletes one tree, however deep: folders in an inner folder are first moved up to the root."""

    def __init__(self, name: str, parent: int, *, until: float, now: Callable[[], float]) -> None:
        self._name = name
        self._parent = parent
        self._until = until
        self._now = now

    def do(self) -> None:
        """Make passes over the root until it is gone."""
        while (root := _open_to_remove(self._name, self._parent)) is not None:
            self._check_time()
            try:
                for folder in self._emptied(root):
                    self._flatten(folder, root)
            finally:
                os.close(root)
            with _unless_changed(self._parent):
                os.rmdir(self._name, dir_fd=self._parent)
        # a file or a link of that name was never ours
        with _unless_changed(self._parent):
            os.unlink(self._name, dir_fd=self._parent)

    def _flatten(self, name: str, root: int) -> None:
        """Empty a folder in the root and delete it; folders in it come to lie beside it."""
        folder = _open_to_remove(name, root)
        if folder is None:
            return
        try:
            for inner in self._emptied(folder):
                self._lift(inner, folder, root)
        finally:
            os.close(folder)
        with _unless_changed(root):
            os.rmdir(name, dir_fd=root)

    def _lift(self, name: str, folder: int, root: int) -> None:
        # a folder that is moved needs the right to write into it
        inner = _open_to_remove(name, folder)
        if inner is not None:
            os.close(inner)
        with _unless_changed(folder):
            os.rename(name, f".lifted-{token_hex(16)}", src_dir_fd=folder, dst_dir_fd=root)

    def _check_time(self) -> None:
        if self._now() > self._until:
            raise TimeoutError

    def _emptied(self, folder: int) -> list[str]:
        """Delete everything in *folder* but the folders in it, and return some of those."""
        folders: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._check_time()
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                    if len(folders) == _AT_ONCE:
                        break
                else:
                    with _unless_changed(folder):
                        os.unlink(entry.name, dir_fd=folder)
        return folders


def _open_to_remove(name: str, folder: int) -> int | None:
    """Open a folder that is to go, and take it from whoever may still hold a descriptor of it."""
    opened = open_unlocked(name, folder, mode=0o700)
    if opened is not None:
        try:
            _take(opened)
        except BaseException:
            os.close(opened)
            raise
    return opened


def _take(folder: int) -> None:
    if os.geteuid() == 0:
        os.fchown(folder, 0, 0)
    os.fchmod(folder, 0o700)


@contextmanager
def _unless_changed(folder: int) -> Iterator[None]:
    """Pass over what somebody changed in between; in a folder that is not this process's own the error stands."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CHANGED:
            raise
        if isinstance(error, PermissionError) and os.fstat(folder).st_uid != os.geteuid():
            raise
