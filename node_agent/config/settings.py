"""The configuration as the rest of the agent sees it: frozen values in the domain's words.

Owns loading as a whole. Must not know what the agent does with a setting.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from node_agent.config.document import MAX_BYTES, DocumentError, Source, read_document
from node_agent.config.faults import Fault, path_text, translate
from node_agent.config.machine import THIS_MACHINE, Machine
from node_agent.config.shape import (
    LimitsSection,
    LoggingSection,
    NetworkSection,
    Shape,
    ShareSection,
)
from node_agent.domain.container import ContainerLimits, PullPolicy, Relaxation
from node_agent.domain.database import Database
from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError

USER_UNDER_ROOT = (64198, 64198)
"""Whom algorithms run as when the agent itself is root; no account of the machine needs to have this id."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One agent's configuration."""

    name: str
    server: ServerSettings
    state_dir: Path
    databases: tuple[Database, ...] = ()
    algorithms: tuple[str, ...] = ()
    """Rules of the policy: image globs, or `name@sha256:…`."""
    images: ImageSettings = ImageSettings()
    limits: LimitsSection = field(default_factory=LimitsSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    relaxations: tuple[Relaxation, ...] = ()
    container_user: tuple[int, int] = USER_UNDER_ROOT
    share: ShareSection = field(default_factory=ShareSection)
    docker_host: str | None = None
    logging: LoggingSection = field(default_factory=LoggingSection)

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
    def secrets(self) -> tuple[Secret, ...]:
        """Give every secret of the file, for the log to mask."""
        return (self.server.api_key, *(login.password for login in self.images.registries))


def load(path: Path, *, machine: Machine = THIS_MACHINE) -> Settings:
    """Read a configuration file; ConfigError lists every fault at once."""
    source = _read(path, machine)
    shape, faults = _check(source, machine)
    if shape is None or faults:
        raise ConfigError(
            f"The configuration {path} has {_count(faults)}.",
            hint="Correct the file and start again.",
            faults=tuple(str(fault) for fault in faults),
        )
    return _settings(shape, machine)


def _read(path: Path, machine: Machine) -> Source:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The configuration {path} cannot be read: {error.strerror}.",
            hint="Name the file with --config, and let the agent's user read it.",
        ) from error
    try:
        return read_document(content, machine.environment)
    except DocumentError as error:
        raise ConfigError(
            f"The configuration {path} is not usable: {error}.", hint="Correct the file and start again."
        ) from error


def _check(source: Source, machine: Machine) -> tuple[Shape | None, list[Fault]]:
    faults = [Fault(source.line_of(loc), path_text(loc), text) for loc, text in source.faults]
    faults += _repeated_labels(source)
    shape = None
    try:
        shape = Shape.model_validate(source.tree, context={"machine": machine})
    except ValidationError as error:
        faults += translate(error.errors(include_url=False), source)
    return shape, _one_per_place(faults)


def _one_per_place(faults: list[Fault]) -> list[Fault]:
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
        algorithms=shape.policy.algorithms,
        images=_images(shape),
        limits=shape.limits,
        network=shape.network,
        relaxations=tuple(Relaxation(**_plain(section)) for section in shape.hardening.relax),
        container_user=shape.container_user or _default_user(machine),
        share=shape.share,
        docker_host=shape.docker_host,
        logging=shape.logging,
    )


def _plain(section: Any) -> dict[str, Any]:
    return dict(section)


def _images(shape: Shape) -> ImageSettings:
    logins = (
        RegistryLogin(host=section.host, username=section.username, password=section.secret)
        for section in shape.images.registries
    )
    return ImageSettings(pull=shape.images.pull, registries=tuple(logins))


def _default_user(machine: Machine) -> tuple[int, int]:
    uid, gid = machine.user
    return USER_UNDER_ROOT if uid == 0 else (uid, gid)
