"""A configuration that is read again while its agent works: what counts at once, and what only a restart takes up.

Owns the table of which is which, and finding out what changed. Must not know how the agent swaps what it works with.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel

from node_agent.config.settings import Settings, load
from node_agent.errors import ConfigError

RELOADED: Final = ("policy", "limits", "share", "logging")
"""The sections that count for every step after a reload."""
HALF_RELOADED: Final = frozenset({"limits.output_size"})
"""Counts for runs at once; what may pass the proxy in one piece follows from it, and is set up at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """A configuration that was read again."""

    settings: Settings
    """What counts from now on."""
    taken: tuple[str, ...]
    """The settings that changed and count now."""
    left: tuple[str, ...]
    """The settings that changed and count only after a restart."""


def reread(running: Settings) -> Reread:
    """Read the file of a *running* agent again. Raises ConfigError: nothing changes then."""
    if running.file is None or running.written is None:
        raise ConfigError("This agent was not started from a file.", hint="Restart it instead.")
    found = load(running.file)
    if found.written is None:
        raise ConfigError(f"The configuration {running.file} was read without its settings.")
    changed = tuple(_changed(running.written, found.written, ""))
    return Reread(
        settings=_merged(running, found),
        taken=tuple(path for path in changed if is_reloaded(path)),
        left=tuple(path for path in changed if not is_reloaded(path) or path in HALF_RELOADED),
    )


def is_reloaded(path: str) -> bool:
    """Tell whether the setting at *path*, as the documentation names it, counts without a restart."""
    return path.partition(".")[0] in RELOADED


def _changed(before: BaseModel, after: BaseModel, prefix: str) -> Iterator[str]:
    """Name what differs; a list that differs anywhere is named as a whole."""
    for key in type(before).model_fields:
        old, new = getattr(before, key), getattr(after, key)
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            yield from _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            yield prefix + key


def _merged(running: Settings, found: Settings) -> Settings:
    """Give the running settings with what counts at once taken from those that were found."""
    if running.written is None or found.written is None:
        return running
    sections = {name: getattr(found.written, name) for name in RELOADED}
    return replace(
        running,
        policy=found.policy,
        limits=found.limits,
        share=found.share,
        logging=found.logging,
        # which images get a GPU is a part of the policy
        extras=replace(running.extras, gpu=found.extras.gpu),
        written=running.written.model_copy(update=sections),
    )
