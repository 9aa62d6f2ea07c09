"""What a run of the project left on a machine of its own: containers, processes, mounts, networks, firewall tables.

Must not know what ran. Read from the kernel and the engine's own folder, since the engine is stopped by then.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ENGINE = Path("/var/lib/docker")
# What the engine keeps of its own after it was stopped; it never takes these away.
OF_THE_ENGINE = frozenset({"docker0", str(ENGINE), "/run/docker/netns/default"})
# Made by the first `ip netns add`, and never taken away.
OF_IPROUTE = frozenset({"/run/netns"})


@dataclass(frozen=True)
class Leftovers:
    """Names by kind; false when there are none."""

    found: dict[str, frozenset[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.found.values())

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in self.found.items() if names)

    def beyond(self, before: Self) -> "Leftovers":
        """Return what was not there *before*."""
        return Leftovers(
            {kind: names - before.found.get(kind, frozenset()) for kind, names in self.found.items()}
        )


def left_in(checkout: Path) -> Leftovers:
    """Look at everything that runs, is mounted or is set up now, apart from what the engine keeps."""
    return Leftovers(
        {
            "containers": _containers(),
            "processes": _processes(),
            "mounts": _mounts(),
            "links": _links(),
            "network namespaces": _names(Path("/run/netns")),
            "firewall tables": _tables(),
            "loop devices": _loop_devices(checkout),
        }
    )


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _containers() -> frozenset[str]:
    return _names(ENGINE / "containers")


def _processes() -> frozenset[str]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        # threads of the kernel and the dead have no command line; the first process is this one
        if words and process.name != "1":
            found.add(f"{process.name} {words[:80]}")
    return frozenset(found)


def _mounts() -> frozenset[str]:
    return (
        frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        - OF_THE_ENGINE
        - OF_IPROUTE
    )


def _links() -> frozenset[str]:
    return _names(Path("/sys/class/net")) - OF_THE_ENGINE


def _tables() -> frozenset[str]:
    if shutil.which("nft") is None:
        return frozenset()
    done = subprocess.run(["nft", "--json", "list", "tables"], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout:
        return frozenset()
    tables = (entry.get("table", {}) for entry in json.loads(done.stdout)["nftables"])
    # the engine's own rules stand in the tables of iptables, and stay when it stops
    return frozenset(
        f"{table['family']} {table['name']}"
        for table in tables
        if table and table["name"] not in {"nat", "filter", "raw", "mangle", "docker-bridges"}
    )


def _loop_devices(checkout: Path) -> frozenset[str]:
    files = (path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file"))
    return frozenset(name for name in files if str(checkout) in name or "/node-agent" in name)
