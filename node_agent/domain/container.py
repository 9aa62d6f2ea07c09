"""What a container of ours is asked to be, and what the engine says it is; the words of no particular engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from node_agent.domain.run import ContainerId, RunId


def run_container_name(agent: str, run_id: RunId) -> str:
    """Name the container of a run of the agent *agent*; exactly this name finds it again."""
    return f"node-agent-{agent}-run-{run_id}"


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path inside a container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerLimits:
    """What one container may use: bytes, cores, counts."""

    cpus: float
    memory: int
    pids: int
    tmp_size: int
    file_size: int
    open_files: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """What the owner gives back to the images one pattern names."""

    image: str
    image_user: bool = False
    """Run as the image's own user instead of ours."""
    writable_root: bool = False
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What the owner gives algorithms beyond the contract."""

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    hosts: Mapping[str, str] = field(default_factory=dict)
    gpu: tuple[str, ...] = ()
    """Which images get the GPUs: patterns over the name, or `name@sha256:…` for one content."""
    run_context: bool = False
    """Whether a description of the run lies beside its input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Everything a container is created from; what is not said here is closed."""

    name: str
    run_id: RunId | None
    image_id: str
    user: tuple[int, int] | None
    """uid and gid; None is the image's own user (only by relaxation)."""
    groups: tuple[int, ...]
    environment: Mapping[str, str] = field(repr=False)
    mounts: tuple[Mount, ...]
    limits: ContainerLimits
    command: tuple[str, ...] | None = None
    """Replaces the image's entrypoint and command; only for the agent's own probe and for jobs."""
    writable_root: bool = False
    capabilities: tuple[str, ...] = ()
    gpus: bool = False
    """All GPUs of this machine."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Names the container finds besides the proxy's, and their addresses."""
    gateway_names: tuple[str, ...] = ()
    """Names under which it finds this machine's side of the isolated network, besides the proxy's."""
    address: str | None = None
    """Fixed IPv4 address in the isolated network; None lets the engine choose."""
    series: str = ""
    """Which runs it may follow in a network namespace kept ready: those of the same image and person. Empty: none."""
    namespace: ContainerId | None = None
    """The container whose network namespace it joins; None gives it one of its own."""

    @property
    def may_join(self) -> bool:
        """Tell whether a namespace made for everybody fits: it has no names of its own, and nobody in it has any right."""
        has_own_names = self.hosts or self.gateway_names or self.address
        has_rights = self.writable_root or self.capabilities or self.user is None
        return bool(self.series) and not has_own_names and not has_rights


class Phase(StrEnum):
    """Where a container is in its life."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class EndedBy(StrEnum):
    """Who ended a container, as far as that is known."""

    ITSELF = "itself"
    """Or the kernel, or nobody knows any more."""
    SOMEBODY = "somebody"
    """The engine was asked to, and not by this agent."""
    ENGINE = "engine"
    """The engine stopped, or its machine, and the container with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerReport:
    """What the engine says of one container now."""

    id: ContainerId
    run_id: RunId | None
    phase: Phase
    exit_code: int | None = None
    out_of_memory: bool = False
    paused: bool = False
    ended_by: EndedBy = EndedBy.ITSELF
    started_at: float | None = None
    finished_at: float | None = None
    error: str = ""
    pid: int | None = None
    """Its first process, as numbered where the engine is; None when it does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedImage:
    """An image present on this machine: what it is, and what the registry calls it."""

    image_id: str
    digest: str | None
    is_new: bool = False
    """This pull brought it: no image of this machine had its content before."""


class PullPolicy(StrEnum):
    """When a registry is asked."""

    ALWAYS = "always"
    MISSING = "missing"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """The isolated network as it stands."""

    id: str
    name: str
    bridge: str
    """Name of the bridge interface on the host."""
    subnet: str
    gateway: str
    """Address of the host in the network; the proxy listens here and nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullBounds:
    """What a pull may take of the disk where the engine keeps images; the defaults bound nothing."""

    max_size: int | None = None
    """Bytes of the unpacked image."""
    least_free: int = 0
    """Bytes that stay free."""
    free: Callable[[], int | None] = lambda: None
    """Return the free bytes of that disk; None when it cannot be seen from here."""


UNBOUNDED = PullBounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """How far a pull is: bytes received and bytes known so far."""

    current: int
    total: int
