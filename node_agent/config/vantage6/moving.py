"""From the old node's file to ours, in one call: read, carry over, check by our own rules, write.

Owns the order of the steps and the files that are written. Every fault our own check still finds stands as a comment
beside its setting, so that nothing is wrong in silence.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_agent.config.document import Loc
from node_agent.config.faults import Fault
from node_agent.config.machine import THIS_MACHINE, Kind, Machine
from node_agent.config.settings import faults_in
from node_agent.config.vantage6 import habits, places, policies, sources
from node_agent.config.vantage6.draft import RANK, Draft, Finding, OwnFile, Weight
from node_agent.config.vantage6.keys import ROWS, Fate, Row, key_text
from node_agent.config.vantage6.oldfile import read_old_file
from node_agent.config.vantage6.sheet import Secrets, Shown, Written, write_sheet
from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError

DEFAULT_FOLDER = Path("/etc/node-agent")
RULES: tuple[tuple[Callable[[Draft], None], tuple[str, ...]], ...] = (
    (places.carry_server, ("server_url", "port", "api_path")),
    (places.carry_api_key, ("api_key",)),
    (places.carry_node_environment, ("node_extra_env",)),
    (places.carry_state, ("task_dir",)),
    (
        sources.carry_databases,
        (
            "databases[].label",
            "databases[].uri",
            "databases[].type",
            "databases[].mount_mode",
            "databases[].env",
        ),
    ),
    (
        policies.carry_lists,
        (
            "policies.allowed_algorithms",
            "policies.allowed_algorithm_stores",
            "policies.allow_either_whitelist_or_store",
            "allowed_images",
        ),
    ),
    (policies.carry_people, ("policies.allowed_users", "policies.allowed_organizations")),
    (policies.carry_basics, ("policies.allow_basics_algorithm",)),
    (policies.carry_gpu, ("algorithm_device_requests.gpu",)),
    (places.carry_encryption, ("encryption.enabled", "encryption.private_key")),
    (policies.carry_pull, ("policies.require_algorithm_pull",)),
    (
        habits.carry_registries,
        ("docker_registries[].registry", "docker_registries[].username", "docker_registries[].password"),
    ),
    (sources.carry_whitelist, ("whitelist.domains", "whitelist.ips", "whitelist.ports")),
    (sources.carry_linked_containers, ("docker_services",)),
    (
        sources.carry_tunnels,
        (
            "ssh-tunnels[].hostname",
            "ssh-tunnels[].ssh.host",
            "ssh-tunnels[].ssh.port",
            "ssh-tunnels[].ssh.fingerprint",
            "ssh-tunnels[].ssh.identity.username",
            "ssh-tunnels[].ssh.identity.key",
            "ssh-tunnels[].tunnel.dest.ip",
            "ssh-tunnels[].tunnel.dest.port",
        ),
    ),
    (habits.carry_variables, ("algorithm_env",)),
    (habits.carry_run_context, ("run_context_file",)),
    (habits.carry_sharing, ("share_config", "share_algorithm_logs")),
    (habits.carry_logging, ("logging.level", "logging.format")),
    (places.carry_hosts, ("node_extra_hosts",)),
)
"""Which function carries which keys over, in the order they need each other."""

_PART = re.compile(r"[^.\[\]]+|\[[0-9]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewConfiguration:
    """What comes out."""

    name: str
    findings: tuple[Finding, ...]
    """The most important first."""
    shown: str
    """The file without any secret."""
    written: str = field(repr=False)
    """The file as it belongs into the folder."""
    secrets: Mapping[str, Secret]
    """Files of its own, by name."""
    faults: tuple[Fault, ...]
    """What our own check still finds; each is among the findings, too."""


def convert(
    path: Path,
    *,
    name: str | None = None,
    environment: str | None = None,
    folder: Path = DEFAULT_FOLDER,
    machine: Machine = THIS_MACHINE,
) -> NewConfiguration:
    """Read an old node's file and give ours."""
    old = read_old_file(path, environment)
    draft = Draft(name=places.valid_name(name or path.stem), old=old, folder=folder)
    draft.put(("name",), draft.name)
    if draft.name != (name or path.stem):
        draft.say(Weight.NOTE, (), f"the node was called {name or path.stem}", here=("name",))
    for carry, _ in RULES:
        carry(draft)
    _say_what_stays_behind(draft)
    return _finished(draft, path, machine)


def _finished(draft: Draft, path: Path, machine: Machine) -> NewConfiguration:
    secrets = {
        value.file: Secret(value.text) for value in draft.values.values() if isinstance(value, OwnFile)
    }
    there = _WithSecrets(machine, {draft.folder / file: secret for file, secret in secrets.items()})
    way = Written(draft.folder)
    faults = faults_in(write_sheet(draft, way, ()).encode(), there)
    for fault in faults:
        _announce(draft, fault)
    return NewConfiguration(
        name=draft.name,
        findings=tuple(sorted(draft.findings, key=lambda found: RANK[found.weight])),
        shown=_sheet(draft, path, Shown(draft.name)),
        written=_sheet(draft, path, way),
        secrets=secrets,
        faults=tuple(faults),
    )


def _sheet(draft: Draft, path: Path, secrets: Secrets) -> str:
    heading = [
        f"Made from {path.name}, the configuration of a vantage6 node. A comment says what is not as before.",
        *(
            ["Secrets are not shown: each stands as a variable. With --out they are written."]
            if _hides(secrets)
            else []
        ),
    ]
    return write_sheet(draft, secrets, heading)


def _hides(secrets: Secrets) -> bool:
    return isinstance(secrets, Shown)


def _announce(draft: Draft, fault: Fault) -> None:
    here = tuple(int(part[1:-1]) if part.startswith("[") else part for part in _PART.findall(fault.path))
    if any(found.weight is Weight.MUST and found.here == fault.path for found in draft.findings):
        return
    draft.say(Weight.MUST, (), fault.text, here=here)


def _say_what_stays_behind(draft: Draft) -> None:
    left: dict[tuple[Weight, str], list[Loc]] = {}
    for loc in _leaves(draft.old.tree, ()):
        verdict = _verdict(draft, loc)
        if verdict is not None:
            left.setdefault(verdict, []).append(loc)
    for (weight, text), locs in left.items():
        draft.say_of_many(weight, locs, text)


_FATES = {row.key: row for row in ROWS}
_CARRIED = frozenset(key for _, keys in RULES for key in keys)


def _verdict(draft: Draft, loc: Loc) -> tuple[Weight, str] | None:
    """Say what becomes of a key that nothing carries over; None when something does."""
    row = _row_of(loc)
    if row is None:
        return Weight.NOTE, "is no key of a vantage6 node; it was ignored there, too"
    if row.key in _CARRIED:
        return None
    used = row.fate is Fate.NOT_SUPPORTED and (
        loc[0] != "prometheus" or draft.old.at("prometheus", "enabled") is True
    )
    return Weight.LOST if used else Weight.NOTE, row.text


def _row_of(loc: Loc) -> Row | None:
    """Find the row for a place; version 3 had labels where indexes are now, and tunnels one level deeper."""
    if loc[0] == "databases" and len(loc) > 1:
        loc = (loc[0], 0, *(loc[2:] or ("uri",)))
    if loc[0] == "ssh-tunnels" and loc[2:4] == ("ssh", "tunnel"):
        loc = (*loc[:2], *loc[3:])
    keys = (key_text(loc[:size]) for size in range(len(loc), 0, -1))
    return next((_FATES[key] for key in keys if key in _FATES), None)


def _leaves(value: Any, loc: Loc) -> Iterator[Loc]:
    """Give the places that hold something, as deep as the table goes."""
    if key_text(loc) in _FATES or not isinstance(value, dict | list) or not value:
        yield loc
        return
    pairs: Sequence[tuple[int | str, Any]] = list(
        value.items() if isinstance(value, dict) else enumerate(value)
    )
    for key, item in pairs:
        yield from _leaves(item, (*loc, key))


class _WithSecrets:
    """A machine on which the secrets already lie where they will be written."""

    def __init__(self, machine: Machine, secrets: Mapping[Path, Secret]) -> None:
        self._machine = machine
        self._secrets = secrets
        self.environment = machine.environment
        self.user = machine.user
        self.last_id = machine.last_id

    def kind(self, path: Path) -> Kind:
        """Say what stands at *path*."""
        return Kind.FILE if path in self._secrets else self._machine.kind(path)

    def read_secret(self, path: Path) -> Secret:
        """Give a secret."""
        return self._secrets.get(path) or self._machine.read_secret(path)


def files_of(new: NewConfiguration, target: Path) -> dict[Path, bytes]:
    """Give what is to be written: the configuration last, so that it never names a secret that is not there."""
    files = {target.parent / file: f"{secret.reveal()}\n".encode() for file, secret in new.secrets.items()}
    return {**files, target: new.written.encode()}


def refuse_existing(files: Mapping[Path, bytes]) -> None:
    """Stop before anything is overwritten."""
    there = [str(path) for path in files if path.exists() or path.is_symlink()]
    if there:
        raise ConfigError(
            f"There is already {', '.join(there)}.", hint="Choose another --out, or overwrite with --force."
        )


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files that only their owner reads; each appears whole or not at all."""
    for path, content in files.items():
        try:
            _write(path, content)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}.", hint="Choose another --out."
            ) from error


def _write(path: Path, content: bytes) -> None:
    # made with mode 0600
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
