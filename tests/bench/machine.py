"""What a process holds and uses, and what machine the bench runs on, as the kernel tells it.

Owns the reading of /proc. Must not know whose processes these are.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import docker
import psutil

MB = 1_000_000
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Held:
    """What processes hold together, and what they used.

    Memory is in MB, millions of bytes: resident, and with shared pages divided among those who share them.
    """

    rss: float
    pss: float
    files: int
    threads: int
    cpu_seconds: float
    """Used since they started."""


def held_by(pids: Sequence[int]) -> Held:
    """Add up what these processes and their children hold."""
    each = [found for process in _families(pids) if (found := _held(process)) is not None]
    return Held(
        rss=sum(one.rss for one in each),
        pss=sum(one.pss for one in each),
        files=sum(one.files for one in each),
        threads=sum(one.threads for one in each),
        cpu_seconds=sum(one.cpu_seconds for one in each),
    )


def _families(pids: Sequence[int]) -> set[psutil.Process]:
    found = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found |= {process, *process.children(recursive=True)}
    return found


def _held(process: psutil.Process) -> Held | None:
    try:
        memory, times = process.memory_full_info(), process.cpu_times()
        return Held(
            rss=memory.rss / MB,
            pss=memory.pss / MB,
            files=process.num_fds(),
            threads=process.num_threads(),
            cpu_seconds=times.user + times.system,
        )
    except psutil.NoSuchProcess:
        return None


class Peak:
    """How far the memory of one process rises from now on.

    The kernel keeps the highest value itself, so that nothing between two looks is missed.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = _resident(pid, "VmRSS")
        """MB, when the watch began."""
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)

    @property
    def highest(self) -> float:
        """Return the most it held since, in MB."""
        return _resident(self._pid, "VmHWM")

    @property
    def above(self) -> float:
        """Return how far that is above where it was, in MB."""
        return self.highest - self.before


def _resident(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / MB
    raise ProcessLookupError(f"process {pid} has ended")


def load() -> float:
    """Return how many processes wanted to run in the last minute, in the mean."""
    return os.getloadavg()[0]


def machine_facts(client: docker.DockerClient) -> dict[str, Any]:
    """Say what was measured on."""
    engine = client.info()
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "free_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "load_before": round(load(), 2),
        "system": _system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engine": engine["ServerVersion"],
        "storage": engine["Driver"],
        "cgroups": engine.get("CgroupVersion", "1"),
        "commit": _commit(),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")


def _system() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "?")


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "?"


def as_json(held: Held) -> dict[str, float]:
    """Return it as the results keep it."""
    return asdict(held)
