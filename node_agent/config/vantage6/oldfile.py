"""The old node's file as a tree, in whichever of its shapes it was written.

Owns reading: as bounded and as safe as our own configuration. Must not know what a key means. Version 3 put everything
below `application`, or below the name of an environment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_agent.config.document import MAX_BYTES, DocumentError, Loc, Source, read_verbatim
from node_agent.config.faults import path_text
from node_agent.errors import ConfigError

ENVIRONMENTS = ("application", "prod", "acc", "test", "dev")
_LIKE_A_NODE = frozenset({"api_key", "server_url", "databases", "task_dir"})


@dataclass(frozen=True, slots=True)
class OldFile:
    """What the old node was told."""

    tree: Mapping[str, Any] = field(repr=False)
    source: Source = field(repr=False)
    root: Loc = ()
    """Where in the file the tree begins."""

    def at(self, *loc: int | str) -> Any:
        """Give what stands at a place; None when nothing does."""
        found: Any = self.tree
        for part in loc:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def written(self, *loc: int | str) -> str:
        """Give a single value as it is written in the file."""
        return self.source.text_of((*self.root, *loc))

    def line(self, *loc: int | str) -> int:
        """Give the line of a value."""
        return self.source.line_of((*self.root, *loc))


def read_old_file(path: Path, environment: str | None = None) -> OldFile:
    """Read the file; *environment* chooses among several in one file. ConfigError says what is wrong."""
    source = _read(path)
    if source.faults:
        faults = tuple(
            f"{path_text(loc)} (line {source.line_of(loc)}): {text}" for loc, text in source.faults
        )
        raise _unusable(path, "it has faults", faults)
    root = _root(path, source.tree, environment)
    tree = source.tree
    for part in root:
        tree = tree[str(part)]
    if not isinstance(tree, dict) or not _LIKE_A_NODE & tree.keys():
        raise _unusable(
            path, "it is no configuration of a vantage6 node (no api_key, server_url or databases)"
        )
    return OldFile(_merged(tree), source, root)


def _read(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            return read_verbatim(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise ConfigError(
            f"The file {path} cannot be read: {error.strerror}.",
            hint="`v6 node files` shows where a node has its configuration.",
        ) from error
    except DocumentError as error:
        raise _unusable(path, str(error)) from error


def _unusable(path: Path, reason: str, faults: tuple[str, ...] = ()) -> ConfigError:
    return ConfigError(
        f"The file {path} is not usable: {reason}.",
        hint="Give the YAML file of a vantage6 version 4 node.",
        faults=faults,
    )


def _root(path: Path, tree: Mapping[str, Any], environment: str | None) -> Loc:
    places: dict[str, Loc] = {}
    nested = tree.get("environments")
    for name in ENVIRONMENTS:
        if isinstance(nested, dict) and name in nested:
            places[name] = ("environments", name)
        if isinstance(tree.get(name), dict):
            places[name] = (name,)
    if environment is not None:
        return _chosen(path, places, environment)
    if "application" in places or not places:
        return places.get("application", ())
    if len(places) == 1:
        return next(iter(places.values()))
    raise _several(path, places)


def _chosen(path: Path, places: Mapping[str, Loc], environment: str) -> Loc:
    if environment not in places:
        there = ", ".join(places) or "none"
        raise ConfigError(f"The file {path} has no environment {environment} (there: {there}).")
    return places[environment]


def _several(path: Path, places: Mapping[str, Loc]) -> ConfigError:
    return ConfigError(
        f"The file {path} holds several environments: {', '.join(places)}.",
        hint="Choose one with --environment.",
    )


def _merged(value: Any) -> Any:
    """Put in what a YAML merge key (`<<`) stands for; what is written out wins."""
    if isinstance(value, list):
        return [_merged(item) for item in value]
    if not isinstance(value, dict):
        return value
    own = {key: _merged(item) for key, item in value.items() if key != "<<"}
    shared = value.get("<<", ())
    for block in shared if isinstance(shared, list) else [shared]:
        if isinstance(block, dict):
            own = {**_merged(block), **own}
    return own
