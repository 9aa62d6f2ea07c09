"""The configuration as the rest of the agent sees it: frozen values in the domain's words.

Owns loading as a whole. Must not know what the agent does with a setting.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from node_agent.config.compute import ComputeApiSection
from node_agent.config.credentials import credentials_of
from node_agent.config.document import MAX_BYTES, DocumentError, Loc, Source, read_document
from node_agent.config.faults import Fault, path_text, translate
from node_agent.config.machine import THIS_MACHINE, Machine
from node_agent.config.offering import faults_of_offer
from node_agent.config.shape import (
    EgressSection,
    KeepSection,
    LimitsSection,
    LoggingSection,
    NetworkSection,
    PolicySection,
    ServiceSection,
    Shape,
    ShareSection,
)
from node_agent.config.vantage6.keys import looks_like_vantage6
from node_agent.domain.container import ContainerLimits, Extras, PullPolicy, Relaxation
from node_agent.domain.database import Database
from node_agent.domain.policy import Policy, Restriction
from node_agent.domain.secret import Secret
from node_agent.domain.service import Entrance, Service, Tunnel, entrances
from node_agent.errors import ConfigError

USER_UNDER_ROOT = (64198, 64198)
"""Whom algorithms run as when the agent itself is root; no account of the machine needs to have this id."""

IDS_UNDER_ROOT = (2_000_300_000, 2_000_365_535)
"""The first and the last uid of runs when the agent is root: above those of directory services, below 2^31."""
_IDS_IN_A_NAMESPACE = 2048
_KEPT_FREE = 2048
"""At the upper end of a small user namespace, where `nobody` and users of the distribution are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The coordinating server."""

    url: str
    api_key: Secret
    ca_bundle: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogin:
    """A login to an image registry."""

    host: str
    username: str
    password: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Where algorithm images come from."""

    pull: PullPolicy = PullPolicy.ALWAYS
    registries: tuple[RegistryLogin, ...] = ()
    docker_config: Path | None = None
    max_size: int = 20 * 2**30
    """Bytes that an image may have unpacked, to be pulled."""
    keep: int = 30 * 86_400
    """Seconds that an image this agent pulled stays without being used."""
    disk_pressure: int = 85
    """How full the engine's disk may be, in percent, before unused images go earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One agent's configuration."""

    name: str
    server: ServerSettings
    state_dir: Path
    databases: tuple[Database, ...] = ()
    policy: Policy = field(default_factory=Policy)
    images: ImageSettings = ImageSettings()
    limits: LimitsSection = field(default_factory=LimitsSection)
    keep: KeepSection = field(default_factory=KeepSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    egress: EgressSection = field(default_factory=EgressSection)
    services: tuple[Service, ...] = ()
    relaxations: tuple[Relaxation, ...] = ()
    container_user: tuple[int, int] = USER_UNDER_ROOT
    """Whom algorithms run as where they have one user; elsewhere its group is one that every run is in."""
    container_ids: range | None = None
    """The uids of runs; None: they have one user."""
    extras: Extras = field(default_factory=Extras)
    private_key: Path | None = None
    key_fingerprints: Mapping[int, str] = field(default_factory=dict)
    """The only public keys that are believed for these organizations, by their numbers."""
    """Where the key of an encrypted collaboration stands; payload/keys.py reads it."""
    share: ShareSection = field(default_factory=ShareSection)
    docker_host: str | None = None
    logging: LoggingSection = field(default_factory=LoggingSection)
    compute_api: ComputeApiSection = field(default_factory=ComputeApiSection)
    """Off as long as it listens nowhere."""
    file: Path | None = None
    """Where it was read."""
    written: Shape | None = field(default=None, repr=False, compare=False)
    """The same as it stands in the file, defaults filled in."""

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Give the patterns of images the policy lists."""
        return self.policy.algorithms or ()

    @property
    def container_limits(self) -> ContainerLimits:
        """Give what one container may use."""
        limits = self.limits
        return ContainerLimits(
            cpus=limits.cpus,
            memory=limits.memory,
            pids=limits.pids,
            tmp_size=limits.tmp_size,
            file_size=limits.output_size,
            open_files=limits.open_files,
        )

    @property
    def container_reader(self) -> tuple[int, int]:
        """Return a uid and gid that read databases as any run does."""
        uid, gid = self.container_user
        return (uid if self.container_ids is None else self.container_ids[-1]), gid

    @property
    def container_groups(self) -> tuple[int, ...]:
        """List the groups every run is in besides its own."""
        return () if self.container_ids is None else self.container_user[1:]

    @property
    def egress_port(self) -> int | None:
        """Give the port of the way outside; None when there is none."""
        return self.egress.port if self.egress.allow else None

    @property
    def entrances(self) -> Mapping[str, Entrance]:
        """Give what stands for each database server inside the isolated network, by label."""
        return entrances(self.databases, taken=(self.network.proxy_port, self.egress.port))

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Give every secret of the file, for the log to mask."""
        own = (self.server.api_key, *(login.password for login in self.images.registries))
        return tuple(dict.fromkeys(own + self.credentials))

    @property
    def credentials(self) -> tuple[Secret, ...]:
        """Give the credentials that algorithms see, for their logs to mask."""
        return credentials_of(self.databases, self.extras.environment)


def load(path: Path, *, machine: Machine = THIS_MACHINE) -> Settings:
    """Read a configuration file; ConfigError lists every fault at once."""
    return replace(_settings(load_shape(path, machine=machine), machine), file=path.absolute())


def load_shape(path: Path, *, machine: Machine = THIS_MACHINE) -> Shape:
    """Read a configuration file as it is written, defaults filled in; ConfigError lists every fault at once."""
    source, is_open = _read(path, machine)
    shape, faults = _check(source, machine)
    if is_open:
        faults = _one_per_place([*_secrets_in(source, path), *faults])
    if shape is None or faults:
        raise ConfigError(
            f"The configuration {path} has {_count(faults)}.",
            hint=_hint(source, path),
            faults=tuple(str(fault) for fault in faults),
        )
    return shape


def _hint(source: Source, path: Path) -> str:
    if looks_like_vantage6(source.tree):
        return f"It is that of a vantage6 node; `node-agent config import-vantage6 {path}` makes one of ours out of it."
    return "Correct the file and start again."


def faults_in(content: bytes, machine: Machine) -> list[Fault]:
    """Give every fault of a configuration that is not written yet."""
    try:
        source = read_document(content, machine.environment)
    except DocumentError as error:
        return [Fault(0, "", str(error))]
    return _check(source, machine)[1]


def _read(path: Path, machine: Machine) -> tuple[Source, bool]:
    """Return the file's content, and whether every user of this machine can read it."""
    try:
        with path.open("rb") as file:
            is_open = bool(os.fstat(file.fileno()).st_mode & stat.S_IRWXO)
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The configuration {path} cannot be read: {error.strerror}.",
            hint="Name the file with --config, and let the agent's user read it.",
        ) from error
    try:
        return read_document(content, machine.environment), is_open
    except DocumentError as error:
        raise ConfigError(
            f"The configuration {path} is not usable: {error}.", hint="Correct the file and start again."
        ) from error


def _check(source: Source, machine: Machine) -> tuple[Shape | None, list[Fault]]:
    faults = [Fault(source.line_of(loc), path_text(loc), text) for loc, text in source.faults]
    faults += _repeated_labels(source)
    faults += _lists_without_entries(source)
    faults += faults_of_offer(source, machine)
    shape = None
    try:
        shape = Shape.model_validate(source.tree, context={"machine": machine})
    except ValidationError as error:
        faults += translate(error.errors(include_url=False), source)
    return shape, _one_per_place(faults)


_SECRETS = frozenset({"api_key", "password"})


def _secrets_in(source: Source, path: Path) -> Iterator[Fault]:
    """Find the secrets that stand in a file which every user of this machine can read."""
    for loc, text in source.texts.items():
        if loc[-1] in _SECRETS and loc[0] in {"server", "images"} and "${" not in text.replace("$${", ""):
            fault = f"is a secret in a file that every user of this machine can read; run: chmod o= {path}"
            yield Fault(source.line_of(loc), path_text(loc), fault)


def _one_per_place(faults: Iterable[Fault]) -> list[Fault]:
    first: dict[str, Fault] = {}
    for fault in faults:
        first.setdefault(fault.path, fault)
    return sorted(first.values())


def _repeated_labels(source: Source) -> Iterator[Fault]:
    # looked for in the tree, so that it is said also when another database has a fault of its own
    databases = source.tree.get("databases")
    first: dict[str, str] = {}
    for index, database in enumerate(databases if isinstance(databases, list) else ()):
        label = database.get("label") if isinstance(database, dict) else None
        if not isinstance(label, str):
            continue
        here = path_text(("databases", index, "label"))
        there = first.setdefault(label.upper(), here)
        if there != here:
            text = f"is used already by {there}; labels must differ in more than case"
            yield Fault(source.line_of(("databases", index, "label")), here, text)


_TELLING_LISTS = frozenset(
    {"algorithms", "algorithm_stores", "users", "organizations", "restrict", "methods", "databases"}
)


def _lists_without_entries(source: Source) -> Iterator[Fault]:
    # elsewhere a key without value is as if it was not there; here that would open what somebody meant to close
    for loc, line in source.lines.items():
        if loc[:1] == ("policy",) and loc[-1] in _TELLING_LISTS and _is_dropped(source.tree, loc):
            text = "has nothing behind it; write [] to allow nothing, or leave it out"
            yield Fault(line, path_text(loc), text)


def _is_dropped(tree: Any, loc: Loc) -> bool:
    for part in loc[:-1]:
        tree = dict(enumerate(tree)) if isinstance(tree, list) else tree
        tree = tree.get(part) if isinstance(tree, dict) else None
    return isinstance(tree, dict) and loc[-1] not in tree


def _count(faults: list[Fault]) -> str:
    return "a fault" if len(faults) == 1 else f"{len(faults)} faults"


def _settings(shape: Shape, machine: Machine) -> Settings:
    server = shape.server
    return Settings(
        name=shape.name,
        server=ServerSettings(
            url=server.url,
            api_key=server.api_key or server.api_key_file or Secret(""),
            ca_bundle=server.ca_bundle,
        ),
        state_dir=shape.state_dir,
        databases=tuple(Database(**_plain(section)) for section in shape.databases),
        policy=_policy(shape.policy),
        images=_images(shape),
        limits=shape.limits,
        keep=shape.keep,
        network=shape.network,
        egress=shape.egress,
        services=tuple(map(_service, shape.services)),
        relaxations=tuple(Relaxation(**_plain(section)) for section in shape.hardening.relax),
        container_user=shape.container_user or _default_user(machine),
        container_ids=None if shape.container_user else _ids(shape.container_users, machine),
        extras=_extras(shape),
        private_key=shape.encryption.private_key,
        key_fingerprints={int(number): text for number, text in shape.encryption.fingerprints.items()},
        share=shape.share,
        docker_host=shape.docker_host,
        logging=shape.logging,
        compute_api=shape.compute_api,
        written=shape,
    )


def _service(section: ServiceSection) -> Service:
    tunnel = None if section.tunnel is None else Tunnel(**_plain(section.tunnel))
    return Service(name=section.name, container=section.container, tunnel=tunnel)


def _policy(section: PolicySection) -> Policy:
    return Policy(
        algorithms=section.algorithms,
        stores=section.algorithm_stores,
        combine=section.combine,
        users=section.users,
        organizations=section.organizations,
        own_organization_only=section.own_organization_only,
        basics_algorithm=section.basics_algorithm,
        restrictions=tuple(Restriction(**_plain(entry)) for entry in section.restrict),
    )


def _plain(section: Any) -> dict[str, Any]:
    return dict(section)


def _images(shape: Shape) -> ImageSettings:
    logins = (
        RegistryLogin(host=section.host, username=section.username, password=section.secret)
        for section in shape.images.registries
    )
    return ImageSettings(
        pull=shape.images.pull,
        registries=tuple(logins),
        docker_config=shape.images.docker_config,
        max_size=shape.images.max_size,
        keep=shape.images.keep,
        disk_pressure=shape.images.disk_pressure,
    )


def _extras(shape: Shape) -> Extras:
    return Extras(
        environment=shape.algorithm_env,
        hosts=shape.algorithm_hosts,
        gpu=shape.policy.gpu,
        run_context=shape.run_context_file,
    )


def _default_user(machine: Machine) -> tuple[int, int]:
    uid, gid = machine.user
    return USER_UNDER_ROOT if uid == 0 else (uid, gid)


def _ids(chosen: tuple[int, int] | None, machine: Machine) -> range | None:
    if machine.user[0] != 0:
        return None  # only root gives folders away
    first, last = chosen or IDS_UNDER_ROOT
    if last > machine.last_id:
        last = machine.last_id - _KEPT_FREE
        first = last - _IDS_IN_A_NAMESPACE + 1
    return range(first, last + 1) if first > 0 else None
