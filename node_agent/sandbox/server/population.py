"""Who takes part: organizations, collaborations, one user for each organization, one node for each member.

Owns the plan, and the secrets made when it is carried out. Must not know HTTP.
"""

import hashlib
import json
import os
import re
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from werkzeug.security import generate_password_hash

from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError
from node_agent.sandbox.server.database import Database

DEFAULT_ORGANIZATIONS = ("alpha", "beta", "gamma")
DEFAULT_COLLABORATION = "sandbox"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollaborationPlan:
    """A collaboration to be, by the names of its organizations."""

    name: str
    organizations: tuple[str, ...]
    encrypted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everybody who is to take part."""

    organizations: tuple[str, ...]
    collaborations: tuple[CollaborationPlan, ...]

    @classmethod
    def of(cls, organizations: Sequence[str] = DEFAULT_ORGANIZATIONS, *, encrypted: bool = False) -> Self:
        """Plan one collaboration of all these organizations."""
        names = tuple(organizations)
        together = CollaborationPlan(name=DEFAULT_COLLABORATION, organizations=names, encrypted=encrypted)
        return cls(organizations=names, collaborations=(together,))

    def check(self) -> None:
        """Raise ConfigError if the plan cannot be carried out."""
        wrong = [name for name in self.organizations if not _NAME.fullmatch(name)]
        if wrong or not self.organizations:
            raise ConfigError(
                f"These are no names for organizations: {', '.join(map(repr, wrong)) or 'none was given'}.",
                hint="Use letters, digits, dots, dashes and underscores, as in --organizations alpha,beta.",
            )
        if len(set(self.organizations)) < len(self.organizations):
            raise ConfigError("Two organizations have the same name.", hint="Name each organization once.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The secrets of users and nodes, by organization; a node's key by collaboration and organization."""

    passwords: Mapping[str, Secret] = field(default_factory=dict)
    api_keys: Mapping[tuple[str, str], Secret] = field(default_factory=dict)

    def api_key(self, organization: str) -> Secret:
        """Give the key of an organization's node in the first collaboration it is a member of."""
        return next(key for (_, name), key in self.api_keys.items() if name == organization)


def hash_of_key(api_key: str) -> str:
    """Give what is stored of an API key; a key is random enough for a plain hash."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def populate(
    database: Database, plan: Plan, *, hash_password: Callable[[str], str] = generate_password_hash
) -> Credentials:
    """Carry out the plan in an empty database."""
    plan.check()
    with database.transaction():
        passwords = {name: _add_organization(database, name, hash_password) for name in plan.organizations}
        keys: dict[tuple[str, str], Secret] = {}
        for collaboration in plan.collaborations:
            keys |= _add_collaboration(database, collaboration)
    return Credentials(passwords=passwords, api_keys=keys)


def _add_organization(database: Database, name: str, hash_password: Callable[[str], str]) -> Secret:
    """Add an organization and its researcher, who has the organization's name."""
    password = secrets.token_urlsafe(12)
    organization_id = database.change(
        "INSERT INTO organization (name, domain) VALUES (?, ?)", name, f"{name}.example"
    )
    database.change(
        "INSERT INTO user (username, password, firstname, lastname, email, organization_id)"
        " VALUES (?, ?, ?, 'Researcher', ?, ?)",
        name,
        hash_password(password),
        name.title(),
        f"researcher@{name}.example",
        organization_id,
    )
    return Secret(password)


def _add_collaboration(database: Database, plan: CollaborationPlan) -> dict[tuple[str, str], Secret]:
    collaboration_id = database.change(
        "INSERT INTO collaboration (name, encrypted) VALUES (?, ?)", plan.name, plan.encrypted
    )
    keys = {}
    for name in plan.organizations:
        organization_id = database.value("SELECT id FROM organization WHERE name = ?", name)
        if organization_id is None:
            raise ConfigError(f"Collaboration {plan.name!r} names an organization that is not there: {name}.")
        api_key = str(uuid.uuid4())
        database.change("INSERT INTO member VALUES (?, ?)", collaboration_id, organization_id)
        database.change(
            "INSERT INTO node (name, key_hash, organization_id, collaboration_id) VALUES (?, ?, ?, ?)",
            f"{name} - {plan.name} Node",
            hash_of_key(api_key),
            organization_id,
            collaboration_id,
        )
        keys[plan.name, name] = Secret(api_key)
    return keys


def is_populated(database: Database) -> bool:
    """Tell whether anybody takes part yet."""
    return database.row("SELECT 1 FROM organization") is not None


# --- the secrets beside the database, so that a server that is started again can show them ----------------------


def save_credentials(credentials: Credentials, file: Path) -> None:
    """Write the secrets where only the owner can read them."""
    content = {
        "passwords": {name: secret.reveal() for name, secret in credentials.passwords.items()},
        "api_keys": [
            {"collaboration": collaboration, "organization": organization, "api_key": secret.reveal()}
            for (collaboration, organization), secret in credentials.api_keys.items()
        ],
    }
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        json.dump(content, output)
        output.flush()
        os.fsync(output.fileno())
    new.rename(file)


def load_credentials(file: Path) -> Credentials:
    """Read the secrets that were written before."""
    try:
        return _credentials(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The sandbox's credentials {file} cannot be read: {error}.",
            hint="Remove the state directory to begin anew.",
        ) from error


def _credentials(content: dict[str, Any]) -> Credentials:
    return Credentials(
        passwords={name: Secret(text) for name, text in content["passwords"].items()},
        api_keys={
            (entry["collaboration"], entry["organization"]): Secret(entry["api_key"])
            for entry in content["api_keys"]
        },
    )
