"""Everything a step of a run may touch: the ports, the owner's settings, and the contract of the run's image.

Owns these bundles and what is laid out by which contract. Must not know what a step does with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from node_agent.admission import Admission
from node_agent.diskuse import DiskUses
from node_agent.domain.container import (
    ContainerLimits,
    Extras,
    Mount,
    PinnedImage,
    PullPolicy,
    PullProgress,
    Relaxation,
)
from node_agent.domain.database import Database
from node_agent.domain.ports import Clock, Databases, Origin, RunFolders, Runtime, Seal
from node_agent.domain.run import Run, RunId
from node_agent.domain.runlogs import LogMask, LogSharing
from node_agent.domain.secret import Secret
from node_agent.domain.service import Entrance
from node_agent.earlytokens import EarlyTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What the owner decided, as far as steps need it; sizes in bytes, times in seconds."""

    node_name: str
    pull: PullPolicy
    relaxations: tuple[Relaxation, ...]
    limits: ContainerLimits
    output_size: int
    log_size: int
    disk_size: int
    """What a run and its job's temporary folder may take together while it runs."""
    run_time: float
    max_image_size: int | None = None
    """What an image may take unpacked; None: anything."""
    min_free_disk: int = 0
    """What a pull leaves free on the engine's disk."""
    registry_patience: float
    """How long a silent registry is asked again before the run fails."""
    proxy_port: int
    log_mask: LogMask
    """What of a log nobody gets, not even this node's own files."""
    log_sharing: LogSharing = LogSharing.FULL
    extras: Extras = field(default_factory=Extras)
    node_id: int = 0
    egress_port: int | None = None
    """None: there is no way outside."""
    entrances: Mapping[str, Entrance] = field(default_factory=dict)
    """What stands for each database server, by label."""
    limit_words: Mapping[str, str] = field(default_factory=dict)
    """What those who asked call our limits, where that is not the name of the setting."""

    def spoken(self, text: str) -> str:
        """Give a text that names limits in the words of those who asked."""
        for ours, theirs in self.limit_words.items():
            text = text.replace(ours, theirs)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a contract made ready for one container."""

    mounts: tuple[Mount, ...]
    environment: Mapping[str, str] = field(repr=False)
    user: tuple[int, int]
    """The uid and gid whom the folders are made for."""
    command: tuple[str, ...] | None = None
    """Replaces the image's entrypoint and command; None keeps them."""
    gateway_names: tuple[str, ...] = ()
    """Names under which the container finds this machine's side of the isolated network, besides the proxy's."""


class Contract(Protocol):
    """What a container finds, and where it leaves its result."""

    def lay_out(
        self, run: Run, ports: "Ports", databases: tuple[Database, ...], *, token: Secret, open_to_all: bool
    ) -> Layout:
        """Make the run's folders ready and say what its container is given. Raises DiskFull, RunFailed."""

    def capture(self, run: Run, ports: "Ports") -> None:
        """Take over what the ended container left as its result. Raises OutputTooLarge, DiskFull."""

    def has_result(self, run: Run, ports: "Ports") -> bool:
        """Tell whether anything was taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything a step may touch."""

    server: Origin
    """Where the run came from, and where its report belongs."""
    runtime: Runtime
    folders: RunFolders
    databases: Databases
    admission: Admission
    contract: Contract
    clock: Clock
    settings: StepSettings
    wanted: Callable[[RunId], bool]
    """False as soon as the run's ending is decided; long steps ask it in between."""
    progress: Callable[[RunId, PullProgress], None]
    has_company: Callable[[], bool] = lambda: False
    """Whether another agent works with this node's API key."""
    pulled: Callable[[str, PinnedImage], None] = lambda _reference, _image: None
    """Told when a pull brought an image that was not on this machine before."""
    seal: Seal | None = None
    """None: the collaboration is not encrypted."""
    tokens: EarlyTokens = field(default_factory=EarlyTokens)
    free_for_images: Callable[[], int | None] = lambda: None
    """Return the free bytes of the disk where the engine keeps images; None when that cannot be seen."""
    uses: DiskUses = field(default_factory=DiskUses)


PortsOf = Callable[[Run], Ports]
"""Gives the ports that the steps of a run work with; asked in the thread of the step."""
