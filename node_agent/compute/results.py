"""What ended jobs leave: their output files and logs, numbered, until they are deleted.

    <state_dir>/compute/<job id>/         one job; 0700, the agent's
        files.json                        what lies here, in the order of its index
        0, 1, 2 …                         the files themselves

Outputs are untrusted (`store.untrusted`): links, devices and sockets are left out, names are bounded and shown harmless,
nested folders go into one archive. Publishing builds a folder aside and renames it, so that it may be repeated after a
crash.
"""

import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfileobj, rmtree
from typing import BinaryIO

from node_agent.compute.ledger import ComputeJobId
from node_agent.errors import OutputTooLarge
from node_agent.store.disk import disk_errors, sync_folder
from node_agent.store.untrusted.copying import copy
from node_agent.store.untrusted.opening import kind_of, names_in, open_folder, opened_file, own_file

ARCHIVE = "outputs.tar"
LOG = "algorithm.log"
RESULT = "result.json"
"""What the one output of a container of the vantage6 contract is called."""
OUTPUT = "output"
MAX_FILES = 1000
MAX_ENTRIES = 100_000
_DEEPEST = 50
_HARMLESS = re.compile(r"[^A-Za-z0-9 ._+=@,()\[\]-]")
_LONGEST_NAME = 200
_LISTING = "files.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """One file a consumer may fetch."""

    index: int
    filename: str
    filesize: int
    type: str
    """`output`, or `algorithmLog`."""


class ResultStore:
    """The files of all ended jobs of one agent."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "compute"
        self._root.mkdir(mode=0o700, exist_ok=True)

    def collect(self, job_id: ComputeJobId, *, outputs: int | None, limit: int) -> None:
        """Copy what an algorithm left in the open folder *outputs*, to be published later.

        Raises OutputTooLarge, DiskFull.
        """
        if (self._root / job_id).exists():
            return
        with disk_errors():
            aside = self._fresh(job_id)
            found = [] if outputs is None else list(_outputs_into(aside, outputs, limit=limit))
            _write_listing(aside, found)

    def has_outputs(self, job_id: ComputeJobId) -> bool:
        """Tell whether anything was collected and not yet published."""
        return bool(_read_listing(self._aside(job_id)))

    def publish(self, job_id: ComputeJobId, *, result: Path | None, log: Path | None) -> None:
        """Let what was collected be seen, with the one *result* file of the other contract and the log. Raises DiskFull."""
        final = self._root / job_id
        if final.exists():
            return
        with disk_errors():
            aside = self._aside(job_id)
            if not (aside / _LISTING).exists():
                _write_listing(self._fresh(job_id), [])
            found = [entry for entry in _read_listing(aside) if entry.type == OUTPUT and result is None]
            if result is not None:
                found.append(_copied(aside, 0, result, name=RESULT, kind=OUTPUT))
            if log is not None:
                found.append(_copied(aside, len(found), log, name=LOG, kind="algorithmLog"))
            _write_listing(aside, found)
            aside.rename(final)
            sync_folder(self._root)

    def _aside(self, job_id: ComputeJobId) -> Path:
        return self._root / f"{job_id}.new"

    def _fresh(self, job_id: ComputeJobId) -> Path:
        aside = self._aside(job_id)
        rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        return aside

    def drop_collected(self, job_id: ComputeJobId) -> None:
        """Delete what was collected and will not be published."""
        rmtree(self._aside(job_id), ignore_errors=True)

    def files(self, job_id: ComputeJobId) -> tuple[ResultFile, ...]:
        """List what there is of a job, by index."""
        return tuple(_read_listing(self._root / job_id))

    def path(self, job_id: ComputeJobId, index: int) -> Path:
        """Say where the file number *index* lies."""
        return self._root / job_id / str(index)

    def jobs(self) -> frozenset[ComputeJobId]:
        """Tell of which jobs anything lies here, published or not."""
        return frozenset(ComputeJobId(folder.name.partition(".")[0]) for folder in self._root.iterdir())

    def remove(self, job_id: ComputeJobId) -> None:
        """Delete everything of a job; already gone is fine."""
        rmtree(self._root / job_id, ignore_errors=True)
        self.drop_collected(job_id)


def _write_listing(folder: Path, found: Sequence[ResultFile]) -> None:
    # last, and in one go: what is collected counts from the moment it is listed
    temporary = folder / f"{_LISTING}.new"
    with temporary.open("w") as listing:
        json.dump([asdict(entry) for entry in found], listing)
        listing.flush()
        os.fsync(listing.fileno())
    temporary.replace(folder / _LISTING)
    sync_folder(folder)


def _read_listing(folder: Path) -> list[ResultFile]:
    try:
        listed = json.loads((folder / _LISTING).read_text())
    except FileNotFoundError:
        return []
    return [ResultFile(**entry) for entry in listed]


def _copied(folder: Path, index: int, source: Path, *, name: str, kind: str) -> ResultFile:
    with own_file(source) as content, (folder / str(index)).open("wb") as target:
        copyfileobj(content, target)
        target.flush()
        os.fsync(target.fileno())
        return ResultFile(index=index, filename=name, filesize=target.tell(), type=kind)


# --- what an algorithm left -------------------------------------------------------------------------------------


def _outputs_into(folder: Path, outputs: int, *, limit: int) -> Iterator[ResultFile]:
    """Copy the ordinary files, sorted by name, and everything in folders as one archive."""
    budget = _Budget(limit)
    entries = budget.names(outputs)
    files = [name for name in entries if kind_of(name, outputs) == stat.S_IFREG]
    folders = [name for name in entries if kind_of(name, outputs) == stat.S_IFDIR]
    if len(files) > MAX_FILES:
        files, folders = [], entries
    index = 0
    for name in files:
        if taken := _taken(folder, index, name, outputs, budget):
            yield taken
            index += 1
    if folders:
        yield _archived(folder, index, folders, outputs, budget)


class _Budget:
    """How much a job's outputs may still have, in bytes and in entries."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes_left = limit
        self._entries_left = MAX_ENTRIES

    @property
    def bytes_left(self) -> int:
        """How many bytes may still come."""
        return self._bytes_left

    def take(self, size: int) -> None:
        """Count one entry. Raises OutputTooLarge."""
        self._bytes_left -= size
        self._entries_left -= 1
        self._check()

    def names(self, folder: int) -> list[str]:
        """List what lies in a folder, sorted. Raises OutputTooLarge."""
        found = names_in(folder, most=MAX_ENTRIES + 1)
        if len(found) > MAX_ENTRIES:
            self.take(self._bytes_left + 1)
        return sorted(found, key=os.fsencode)

    def _check(self) -> None:
        if self._bytes_left < 0 or self._entries_left < 0:
            raise OutputTooLarge(
                f"The algorithm's outputs are more than this node takes: {self._limit:,} bytes "
                f"(disk of the environment) in {MAX_ENTRIES:,} files."
            )


def _taken(folder: Path, index: int, name: str, opened: int, budget: _Budget) -> ResultFile | None:
    with opened_file(name, opened) as source:
        if source is None:
            return None
        with (folder / str(index)).open("wb") as target:
            # a file that grows meanwhile does not fit either
            size = copy(source, target.fileno(), limit=budget.bytes_left)
            budget.take(size)
            os.fsync(target.fileno())
    return ResultFile(index=index, filename=_shown(name), filesize=size, type=OUTPUT)


def _archived(folder: Path, index: int, names: Sequence[str], opened: int, budget: _Budget) -> ResultFile:
    path = folder / str(index)
    with path.open("wb") as target:
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                _add(archive, name, opened, prefix="", budget=budget, depth=0)
        target.flush()
        os.fsync(target.fileno())
    return ResultFile(index=index, filename=ARCHIVE, filesize=path.stat().st_size, type=OUTPUT)


def _add(
    archive: tarfile.TarFile, name: str, parent: int, *, prefix: str, budget: _Budget, depth: int
) -> None:
    kind = kind_of(name, parent)
    if kind == stat.S_IFREG:
        _add_file(archive, name, parent, prefix=prefix, budget=budget)
    elif kind == stat.S_IFDIR and depth < _DEEPEST:
        with _folder(name, parent) as opened:
            if opened is not None:
                _add_folder(archive, name, opened, prefix=prefix, budget=budget, depth=depth)


def _add_file(archive: tarfile.TarFile, name: str, parent: int, *, prefix: str, budget: _Budget) -> None:
    with opened_file(name, parent) as source:
        if source is None:
            return
        entry = _entry(f"{prefix}{_shown(name)}")
        entry.size = os.fstat(source).st_size
        budget.take(entry.size)
        with os.fdopen(os.dup(source), "rb") as content:
            archive.addfile(entry, _Filled(content))


def _add_folder(
    archive: tarfile.TarFile, name: str, opened: int, *, prefix: str, budget: _Budget, depth: int
) -> None:
    budget.take(0)
    entry = _entry(f"{prefix}{_shown(name)}")
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    archive.addfile(entry)
    for inner in budget.names(opened):
        _add(archive, inner, opened, prefix=f"{entry.name}/", budget=budget, depth=depth + 1)


class _Filled(io.RawIOBase):
    """A file of which an archive has told the size already: what was cut off it since reads as zeros."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content

    def read(self, size: int = -1) -> bytes:
        """Read exactly *size* bytes, as `tarfile` does."""
        return self._content.read(size).ljust(max(size, 0), b"\0")


def _entry(name: str) -> tarfile.TarInfo:
    """Describe an entry without anything that would tell of this machine: no owner, no times."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    return entry


@contextmanager
def _folder(name: str, parent: int) -> Iterator[int | None]:
    opened = open_folder(name, parent)
    try:
        yield opened
    finally:
        if opened is not None:
            os.close(opened)


def _shown(name: str) -> str:
    """Give a name that no client and no shell can misread."""
    plain = _HARMLESS.sub("_", os.fsencode(name).decode(errors="replace"))[:_LONGEST_NAME]
    return plain if plain.strip(". ") else f"_{plain}"
