"""Where bodies lie while they pass through: small ones in memory, others on disk, within bounds.

Owns the folder, how much of the disk all calls and the calls for one researcher may hold, and the cleaning. Must not
know what the bodies are.
"""

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from node_agent.proxy.turns import NOBODY

IN_MEMORY = 64 << 10
KEEP_FREE = 256 << 20
"""The disk is the journal's too."""
_PIECE = 256 << 10
_ASK_EVERY = 4 << 20


class NoRoom(Exception):
    """The bodies on their way take all the room there is for them; the text is for the algorithm."""


class Spool:
    """Room on disk, shared so that one researcher leaves some to the others."""

    def __init__(self, folder: Path, *, total: int, keep_free: int = KEEP_FREE) -> None:
        self._folder = folder
        self._ledger = _Ledger(folder, total=total, keep_free=keep_free)
        # what lies here was left by a process that ended on its way
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def taken(self) -> int:
        """Say how many bytes of the room are taken."""
        return self._ledger.taken

    def body(self, owner: str) -> "SpooledBody":
        """Begin a body on behalf of *owner*; it must be closed."""
        return SpooledBody(self._folder, self._ledger, owner)

    @contextmanager
    def place(self, owner: str, size: int) -> Iterator[Path]:
        """Give a folder for files of together at most *size* bytes. Raises NoRoom."""
        with self._ledger.held(owner, size), tempfile.TemporaryDirectory(dir=self._folder) as name:
            yield Path(name)


class SpooledBody:
    """A body that came in; may be read several times, as pieces or as a file."""

    def __init__(self, folder: Path, ledger: "_Ledger", owner: str) -> None:
        self._folder = folder
        self._ledger = ledger
        self._owner = owner
        self._file: BinaryIO | None = None
        self._on_disk = 0
        self._taken = 0
        self._memory = bytearray()
        """What follows the part on disk."""
        self._closed = False
        self._at = 0

    @property
    def length(self) -> int:
        """Say how many bytes there are."""
        return self._on_disk + len(self._memory)

    def __len__(self) -> int:
        return self.length

    @property
    def in_memory(self) -> bool:
        """Tell whether the body is small enough to lie in memory."""
        return self._file is None

    def append(self, piece: bytes) -> None:
        """Add bytes at the end; a body that is closed takes none. Raises NoRoom."""
        if self._closed:  # a line may break while its last bytes are taken in
            return
        self._memory += piece
        if len(self._memory) > IN_MEMORY:
            self._write()

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes from the beginning, piece by piece."""
        at = 0
        while piece := self._read(at, _PIECE):
            at += len(piece)
            yield piece

    def close(self) -> None:
        """Give the room back; closed already is fine."""
        self._closed = True
        self._memory.clear()
        if self._file is not None:
            self._file.close()
        self._ledger.give(self._owner, self._taken)
        self._taken = 0

    # --- as a file, for the server that sends and receives it ---

    def getfile(self) -> "SpooledBody":
        """Give what can be read like a file."""
        return self

    def seekable(self) -> bool:
        """Tell that any place can be read."""
        return True

    def tell(self) -> int:
        """Say where the next reading begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Choose where the next reading begins."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read on; when a size is given it may be less, but at the end only nothing."""
        found = self._read(self._at, size) if size >= 0 else b"".join(self)[self._at :]
        self._at += len(found)
        return found

    # --- memory and disk ---

    def _read(self, at: int, size: int) -> bytes:
        if self._file is not None and at < self._on_disk:
            return os.pread(self._file.fileno(), min(size, self._on_disk - at), at)
        start = at - self._on_disk
        return bytes(self._memory[start : start + size])

    def _write(self) -> None:
        self._ledger.take(self._owner, len(self._memory))
        self._taken += len(self._memory)
        try:
            if self._file is None:
                # it has no name, so that nothing stays however this process ends
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - see close
            with memoryview(self._memory) as view:
                at = 0
                while at < len(view):
                    at += self._file.write(view[at:])
        except OSError as error:
            raise NoRoom("The disk of this node is full.") from error
        self._on_disk += len(self._memory)
        self._memory.clear()


class _Ledger:
    """Who holds how much of the room."""

    def __init__(self, folder: Path, *, total: int, keep_free: int) -> None:
        self._folder = folder
        self._total = total
        self._keep_free = keep_free
        self._share = total // 2
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._ask_in = 0

    @property
    def taken(self) -> int:
        with self._lock:
            return self._held.total()

    def take(self, owner: str, size: int) -> None:
        """Note that *owner* holds more. Raises NoRoom."""
        if owner == NOBODY:
            raise NoRoom("A large call needs the token of a run.")
        with self._lock:
            if self._held[owner] + size > self._share:
                raise NoRoom(
                    "The calls of this researcher's runs hold all the room on disk that this node gives them now."
                )
            if self._held.total() + size > self._total:
                raise NoRoom("This node has no room on disk for another large call now.")
            self._ask_the_disk(size)
            self._held[owner] += size

    def give(self, owner: str, size: int) -> None:
        """Note that *owner* holds less."""
        with self._lock:
            self._held[owner] -= size
            if self._held[owner] <= 0:
                del self._held[owner]

    @contextmanager
    def held(self, owner: str, size: int) -> Iterator[None]:
        """Hold some room for the time of the block. Raises NoRoom."""
        self.take(owner, size)
        try:
            yield
        finally:
            self.give(owner, size)

    def _ask_the_disk(self, size: int) -> None:
        self._ask_in -= size
        if self._ask_in > 0:
            return
        if shutil.disk_usage(self._folder).free < self._keep_free + size:
            raise NoRoom("The disk of this node is nearly full.")
        self._ask_in = _ASK_EVERY
