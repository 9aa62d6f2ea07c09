"""Where a sandbox keeps its things, and which sandboxes there are.

Owns the folders and the names of files in them. Must not know what is written into them.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node_agent.errors import ConfigError
from node_agent.sandbox.processes import Mark, is_running, read_mark

DEFAULT_NAME: Final = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,15}\Z")


@dataclass(frozen=True, slots=True)
class ProcessPlace:
    """The folder of one process: its configuration, its log, and the mark that finds it again."""

    folder: Path

    @property
    def log(self) -> Path:
        """Give the file it logs into."""
        return self.folder / "log.jsonl"

    @property
    def output(self) -> Path:
        """Give the file that takes what it prints."""
        return self.folder / "output"

    @property
    def mark_file(self) -> Path:
        """Give the file its mark is in."""
        return self.folder / "process"

    @property
    def config(self) -> Path:
        """Give its configuration."""
        return self.folder / "node.yaml"

    @property
    def key_file(self) -> Path:
        """Give the file with the node's API key."""
        return self.folder / "api.key"

    @property
    def state_dir(self) -> Path:
        """Give the folder it keeps its own things in."""
        return self.folder / "state"

    @property
    def mark(self) -> Mark | None:
        """Read the mark; None when it was never started."""
        return read_mark(self.mark_file)

    @property
    def is_running(self) -> bool:
        """Tell whether it runs now."""
        return is_running(self.mark)


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one sandbox."""

    name: str
    folder: Path

    @property
    def exists(self) -> bool:
        """Tell whether there is such a sandbox, however it is."""
        return self.folder.is_dir()

    @property
    def server(self) -> ProcessPlace:
        """Give the place of the server."""
        return ProcessPlace(self.folder / "server")

    @property
    def connection(self) -> Path:
        """Give the file the server wrote its connection into."""
        return self.server.output

    @property
    def samples(self) -> Path:
        """Give the folder of the sample data."""
        return self.folder / "data"

    @property
    def nodes(self) -> dict[str, ProcessPlace]:
        """Give the places of the nodes by organization, in the order they were made."""
        try:
            names = (self.folder / "nodes.txt").read_text(encoding="utf-8").split()
        except OSError:
            return {}
        return {name: ProcessPlace(self.folder / "nodes" / name) for name in names}

    @property
    def is_running(self) -> bool:
        """Tell whether any process of it runs."""
        return any(process.is_running for process in (self.server, *self.nodes.values()))

    def claim(self, organizations: tuple[str, ...]) -> None:
        """Make the folders, unless somebody else has: of two that bring up the same sandbox, one gets it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError as error:
            raise ConfigError(self._taken(), hint=_how_to_free(self.name)) from error
        (self.folder / "nodes.txt").write_text("\n".join(organizations), encoding="utf-8")
        for folder in (self.server.folder, self.samples, *(node.folder for node in self.nodes.values())):
            folder.mkdir(parents=True, mode=0o700)

    def _taken(self) -> str:
        if self.is_running:
            return f"The sandbox '{self.name}' is up already."
        return f"The sandbox '{self.name}' was up, and its processes are gone."

    def remove(self) -> None:
        """Remove every file of it."""
        shutil.rmtree(self.folder)


def _how_to_free(name: str) -> str:
    return f"Use it, take it down with `node-agent sandbox down --name {name}`, or bring up another one: --name other."


def home() -> Path:
    """Give the folder of all sandboxes of this user."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "node-agent" / "sandbox"


def place_of(name: str) -> Place:
    """Give the place of a sandbox, which need not be there."""
    if not _NAME.match(name):
        raise ConfigError(
            f"This is no name for a sandbox: {name!r}.",
            hint="Use at most 16 small letters, digits and dashes, as in --name second.",
        )
    return Place(name, home() / name)


def existing_place(name: str) -> Place:
    """Give the place of a sandbox that is there. Raises ConfigError."""
    place = place_of(name)
    if not place.exists:
        others = ", ".join(other.name for other in all_places()) or "none"
        raise ConfigError(
            f"There is no sandbox '{name}' (there are: {others}).",
            hint=f"Bring it up: node-agent sandbox up{'' if name == DEFAULT_NAME else f' --name {name}'}",
        )
    return place


def all_places() -> tuple[Place, ...]:
    """Give every sandbox of this user."""
    if not home().is_dir():
        return ()
    names = sorted(folder.name for folder in home().iterdir() if folder.is_dir() and _NAME.match(folder.name))
    return tuple(Place(name, home() / name) for name in names)
