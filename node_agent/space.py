"""How much room this machine has for further runs: memory to share out, and space on the disks that runs fill.

Must not know runs, nor what waits for room.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from node_agent.config import LimitsSection
from node_agent.domain.turns import Bounds
from node_agent.store.disk import free_bytes

_MIB, _GIB = 2**20, 2**30
LARGEST_RESERVE = _GIB
"""What runs never get of a machine's memory: a tenth of it, and no more than this."""


def bounds_of(limits: LimitsSection, *, machine_memory: int | None) -> Bounds:
    """Say what all runs together may take."""
    return Bounds(
        slots=limits.concurrent_runs,
        run_memory=limits.memory,
        total_memory=memory_for_runs(limits, machine_memory=machine_memory),
        runs_per_person=limits.runs_per_person,
        pull_time=limits.pull_time,
        start_time=limits.start_time,
        run_time=limits.run_time,
    )


def memory_for_runs(limits: LimitsSection, *, machine_memory: int | None) -> int | None:
    """Give the memory of all runs together; None when neither the owner nor the engine says."""
    if limits.total_memory is not None:
        return limits.total_memory
    if machine_memory is None:
        return None
    return machine_memory - min(LARGEST_RESERVE, machine_memory // 10)


def places_of(state_dir: Path, data_root: Path | None) -> Mapping[str, Path]:
    """Name the places that runs fill."""
    return {"the state directory": state_dir} | ({"the engine": data_root} if data_root else {})


def seen_free(path: Path) -> int | None:
    """Return the free bytes where *path* lies; None when that cannot be seen."""
    try:
        return free_bytes(path)
    except OSError:
        return None  # whoever needs the place says in words of its own what is wrong with it


def shortage(
    places: Mapping[str, Path], *, least: int, free: Callable[[Path], int | None] = seen_free
) -> str:
    """Return which place has less than *least* bytes free, in words; empty when none has."""
    for what, path in places.items():
        left = free(path)
        if left is not None and left < least:
            return f"{what} has {amount(left)} of disk left, limits.min_free_disk is {amount(least)} ({path})"
    return ""


def amount(size: int) -> str:
    """Write a number of bytes the way a person reads it."""
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"
