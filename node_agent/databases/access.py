"""Who may read a database: the groups a container joins for it, and whether that is enough.

Owns the question whether the user inside a container can read a file. Knows nothing of engines. A container
sees the file or folder alone, never the folders above it, so their rights do not count.
"""

import grp
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node_agent.databases import trial
from node_agent.domain.database import FILE_TYPES, Database, DatabaseType

TRIAL_SECONDS = 20
_SQLITE_MAGIC = b"SQLite format 3\0"
_WAL = 2
"""What an SQLite file says of itself when it needs a second, writable file beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Who the agent itself runs as."""

    uid: int
    groups: frozenset[int]

    @property
    def is_root(self) -> bool:
        """Tell whether the agent can become anybody."""
        return self.uid == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who a container runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def this_agent() -> Agent:
    """Find out who this process is."""
    return Agent(uid=os.geteuid(), groups=frozenset({os.getegid(), *os.getgroups()}))


def groups_for(databases: Iterable[Database], *, agent: Agent) -> tuple[int, ...]:
    """List the groups that own these databases, may read them, and are the agent's to give; never root's."""
    owners = {_readable_group(database.path) for database in databases if database.path is not None}
    return tuple(sorted(gid for gid in owners if gid and (agent.is_root or gid in agent.groups)))


def _readable_group(path: Path) -> int | None:
    try:
        found = path.stat()
    except OSError:
        return None  # its absence is reported where the file is needed
    return found.st_gid if found.st_mode & stat.S_IRGRP else None


def allowed_by_mode(found: os.stat_result, reader: Reader) -> bool:
    """Judge by owner, group and mode bits alone, the way the kernel does without access lists."""
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else 0)
    if found.st_uid == reader.uid:
        return (found.st_mode >> 6) & needed == needed
    if found.st_gid == reader.gid or found.st_gid in reader.groups:
        return (found.st_mode >> 3) & needed == needed
    return found.st_mode & needed == needed


def fault_of(database: Database, *, uid: int, gid: int, agent: Agent, uid_varies: bool = False) -> str | None:
    """Return what keeps a container of this user from reading the database, and what to do about it.

    *uid_varies*: other runs have another uid, so that only the group can be let in.
    """
    if database.path is None:
        return None
    problem = _absence(database) or _write_ahead(database)
    if problem:
        return problem
    reader = Reader(uid=uid, gid=gid, groups=groups_for([database], agent=agent))
    try:
        refused = first_unreadable(database.path, reader, agent=agent)
    except OSError as error:
        return f"Database '{database.label}': {database.path} cannot be checked: {error}."
    return None if refused is None else _refusal(database, refused, reader, uid_varies=uid_varies)


def _absence(database: Database) -> str | None:
    path = database.path
    if path is None or not _is_there(path):
        return (
            f"Database '{database.label}': {path} does not exist, or the agent may not enter "
            "a folder above it. Correct `uri`."
        )
    if database.type in FILE_TYPES and not path.is_file():
        return f"Database '{database.label}': {path} is not a file. Use type `folder` for a folder."
    if database.type is DatabaseType.FOLDER and not path.is_dir():
        return f"Database '{database.label}': {path} is not a folder. Use the type of the file."
    return None


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _write_ahead(database: Database) -> str | None:
    """Say that an SQLite file cannot be opened read-only because it keeps a write-ahead log."""
    if database.type is not DatabaseType.SQLITE or database.path is None:
        return None
    try:
        with database.path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return None  # the container's user may still be able to
    if not head.startswith(_SQLITE_MAGIC) or head[-1:] != bytes([_WAL]):
        return None
    command = f"sqlite3 {shlex.quote(str(database.path))} 'PRAGMA journal_mode=DELETE'"
    return (
        f"Database '{database.label}': {database.path} is in write-ahead mode and cannot be read from "
        f"a read-only mount. Run: {command}, or point to a copy in that mode."
    )


def first_unreadable(path: Path, reader: Reader, *, agent: Agent) -> Path | None:
    """Find the first file or folder at or below *path* that *reader* cannot read."""
    if agent.is_root or agent.uid == reader.uid:
        return _tried(path, reader, agent=agent)
    # nobody here can become the reader, so access lists stay unseen
    return trial.first_refused(path, lambda entry: allowed_by_mode(entry.stat(), reader))


def _tried(path: Path, reader: Reader, *, agent: Agent) -> Path | None:
    identity = [reader.uid, reader.gid, *reader.groups] if agent.is_root else []
    command = [sys.executable, "-I", "-S", trial.__file__, str(path), *map(str, identity)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TRIAL_SECONDS, check=True)
    except subprocess.SubprocessError as error:
        raise OSError(f"the trial read failed ({error})") from error
    refused = json.loads(done.stdout)
    return None if refused is None else path / refused


def _refusal(database: Database, refused: Path, reader: Reader, *, uid_varies: bool) -> str:
    name = shlex.quote(str(refused))
    letters = "rx" if refused.is_dir() else "r"
    by_group = f"chgrp {_group_name(reader.gid)} {name} && chmod g+{letters} {name}"
    whom = f"g:{reader.gid}" if uid_varies else f"u:{reader.uid}"
    by_list = f"setfacl -m {whom}:{letters} {name}"
    reads = f"the group {reader.gid}" if uid_varies else f"{reader.uid}:{reader.gid}"
    return (
        f"Database '{database.label}': {refused} cannot be read by the user containers run as "
        f"({reads}). Run: {by_group}, or: {by_list}"
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
