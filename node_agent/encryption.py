"""Whether the key of this node, its collaboration and its server fit together, and what the `key` commands do.

Owns these rules and their words. Must not know how anything is sealed, nor how an answer is shown.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from node_agent.config import Settings
from node_agent.domain.ports import NodeIdentity, PinnedKey
from node_agent.domain.task import OrganizationId
from node_agent.errors import ConfigError
from node_agent.payload.keys import PrivateKey, PublicKey, create_private_key
from node_agent.server.address import ServerAddress
from node_agent.server.client import HttpServer
from node_agent.server.exchange import Exchange
from node_agent.server.keys import KeyState, OrganizationKeys, PublishedKey, ensure_published
from node_agent.server.tokens import Tokens
from node_agent.store.pins import JournalPins, read_pins


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """The public part of this node's key, and where the private part stands."""

    file: Path
    public: PublicKey
    in_configuration: bool = True


@dataclass(frozen=True, slots=True)
class Upload:
    """What the server had as this organization's key, and what it has now."""

    before: PublishedKey
    own: PublicKey


def own_key(settings: Settings) -> PrivateKey | None:
    """Read the key of this node; None when the configuration names none. Raises ConfigError."""
    return None if settings.private_key is None else PrivateKey.load(settings.private_key)


def check_encryption(identity: NodeIdentity, key: PrivateKey | None) -> None:
    """Refuse a collaboration that asks for a key this node has not, or the other way round. Raises ConfigError."""
    if identity.encrypted and key is None:
        raise ConfigError(
            f"The collaboration '{identity.collaboration_name}' is encrypted, and this node has no key.",
            hint="Name the organization's private key in encryption.private_key; for the organization's very first key: "
            "node-agent key create -c FILE --out PATH.",
        )
    if key is not None and not identity.encrypted:
        raise ConfigError(
            f"This node has a key (encryption.private_key), but the collaboration '{identity.collaboration_name}' "
            "is not encrypted: the server could read every input and every result.",
            hint="If that is accepted, take encryption.private_key out; if not, have the collaboration encrypted first.",
        )


def join(identity: NodeIdentity, key: PrivateKey | None, server: HttpServer) -> None:
    """See to it that key, collaboration and the key at the server fit together. Raises ConfigError."""
    check_encryption(identity, key)
    if key is not None:
        server.keys.keep_own(identity.organization_id, key.public)
        ensure_published(server.keys, identity.organization_id, key.public)


# --- commands -------------------------------------------------------------------------------------------------


def create_key(settings: Settings, out: Path | None) -> KeyFacts:
    """Make the organization's first key. Raises ConfigError."""
    path = out or settings.private_key
    if path is None:
        raise ConfigError(
            "The configuration does not say where the private key stands.",
            hint="Name a file with --out PATH, or set encryption.private_key first.",
        )
    key = create_private_key(path)
    return KeyFacts(file=path, public=key.public, in_configuration=path == settings.private_key)


def show_key(settings: Settings) -> KeyFacts:
    """Read the public part of the key. Raises ConfigError."""
    if settings.private_key is None:
        raise _no_key()
    return KeyFacts(file=settings.private_key, public=PrivateKey.load(settings.private_key).public)


def upload_key(settings: Settings) -> Upload:
    """Give the server the public key, unless it has another one. Raises ConfigError, AccessDenied."""
    return _uploaded(settings, ensure_published)


def replace_key(settings: Settings) -> Upload:
    """Give the server the public key, whatever it had before. Raises ConfigError, AccessDenied."""
    return _uploaded(settings, OrganizationKeys.publish)


def list_keys(settings: Settings) -> list[PinnedKey]:
    """Return the keys of other organizations that this node holds to, also while the agent runs."""
    return read_pins(settings.state_dir)


def accept_key(settings: Settings, organization: int) -> PinnedKey:
    """Accept the key that the server offers for an organization; return the old and the new one. Raises ConfigError."""
    found = next((pin for pin in read_pins(settings.state_dir) if pin.organization == organization), None)
    if found is None or found.offered is None:
        raise ConfigError(
            f"No other key is offered for organization {organization}.",
            hint="See: node-agent key list -c FILE.",
        )
    if not JournalPins(settings.state_dir).accept(found.organization, found.offered):
        raise ConfigError(
            f"The key offered for organization {organization} changed just now.", hint="Look at it again."
        )
    return found


def _uploaded(
    settings: Settings, publish: Callable[[OrganizationKeys, OrganizationId, PublicKey], None]
) -> Upload:
    key = own_key(settings)
    if key is None:
        raise _no_key()
    exchange = Exchange(ServerAddress.of(settings.server.url, ca_bundle=settings.server.ca_bundle))
    with closing(HttpServer(exchange, Tokens(exchange, settings.server.api_key))) as server:
        organization = server.identify().organization_id
        before = server.keys.published(organization)
        if before.state(key.public) is not KeyState.SAME:
            publish(server.keys, organization, key.public)
    return Upload(before, key.public)


def _no_key() -> ConfigError:
    return ConfigError(
        "The configuration names no private key.",
        hint="Set encryption.private_key; for the organization's very first key: node-agent key create -c FILE --out PATH.",
    )
