"""The public keys of organizations: which one a message is sealed with, and what the server shows.

The own organization's key is the one on this machine, and the server is never asked for it. For others the configuration
may name a fingerprint; else the first key seen is pinned, and another one counts only after a person has accepted it.
Owns how long the server's answer is believed. Must not know messages.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from node_agent.domain.ports import KeyPins
from node_agent.domain.task import OrganizationId
from node_agent.errors import ConfigError, KeyChanged, KeyMissing
from node_agent.payload.keys import KeyUnreadable, PublicKey
from node_agent.server import wire
from node_agent.server.exchange import Call, Reply

log = structlog.get_logger()

BELIEVED_SECONDS = 300.0
"""An organization may change its key while the agent runs."""
REMEMBERED = 1000


class KeyState(StrEnum):
    """How the key at the server and the one on this machine stand to each other."""

    SAME = "same"
    NONE_THERE = "none at the server"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """What the server has as an organization's public key: a key, or why there is none that could be used."""

    key: PublicKey | None
    fault: str = ""
    """Empty as well when the server has nothing at all."""

    def state(self, own: PublicKey) -> KeyState:
        """Compare with the key on this machine."""
        if self.key is None and not self.fault:
            return KeyState.NONE_THERE
        return KeyState.SAME if self.key == own else KeyState.DIFFERENT

    def __str__(self) -> str:
        if self.key is not None:
            return self.key.fingerprint
        return f"unreadable ({self.fault})" if self.fault else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTrust:
    """Why a key of another organization is believed: the configuration names its fingerprint, or it was pinned."""

    pins: KeyPins | None = None
    """None: nothing is sealed in this process, so nothing is pinned."""
    fingerprints: Mapping[int, str] = field(default_factory=dict)


class OrganizationKeys:
    """Public keys that messages are sealed with; may be used by many threads."""

    def __init__(
        self,
        ask: Callable[[Call], Reply],
        *,
        trust: KeyTrust | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._trust = trust or KeyTrust()
        self._own: dict[OrganizationId, PublicKey] = {}
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: OrderedDict[OrganizationId, tuple[PublicKey, float]] = OrderedDict()

    def keep_own(self, organization: OrganizationId, key: PublicKey) -> None:
        """Seal for this organization with the key on this machine, whatever the server shows. Raises DiskUnwritable."""
        self._own[organization] = key
        if self._trust.pins is not None:
            # a server that later names another organization as this node's own meets the pin
            self._trust.pins.pin(organization, key.wire)

    def of(self, organization: OrganizationId) -> PublicKey:
        """Return the key to seal with for an organization. Raises KeyChanged, KeyMissing, ServerUnreachable."""
        own = self._own.get(organization)
        if own is not None:
            return own
        shown = self._shown(organization)
        self._require_trusted(organization, shown)
        return shown

    def _require_trusted(self, organization: OrganizationId, shown: PublicKey) -> None:
        expected = self._trust.fingerprints.get(organization)
        if expected is not None:
            if shown.fingerprint != expected:
                log.warning(
                    "organization_key_changed",
                    organization=organization,
                    expected=expected,
                    offered=shown.fingerprint,
                )
                raise _not_named(organization, shown, expected)
            return
        if self._trust.pins is not None:
            self._require_pinned(organization, shown, self._trust.pins)

    def _require_pinned(self, organization: OrganizationId, shown: PublicKey, pins: KeyPins) -> None:
        found = pins.pinned(organization)
        if found is None:
            pins.pin(organization, shown.wire)
            found = pins.pinned(organization)
        pinned = shown if found is None else PublicKey.from_wire(found.key)
        if pinned == shown:
            if found is not None and found.offered is not None:
                pins.offer(organization, None)
            return
        if pins.offer(organization, shown.wire):
            log.warning(
                "organization_key_changed",
                organization=organization,
                expected=pinned.fingerprint,
                offered=shown.fingerprint,
            )
        raise _changed(organization, shown, pinned)

    def _shown(self, organization: OrganizationId) -> PublicKey:
        with self._lock:
            known, until = self._known.get(organization, (None, 0.0))
        if known is not None and self._monotonic() < until:
            return known
        published = self.published(organization)
        if published.key is None:
            raise _missing(organization, published)
        self._remember(organization, published.key)
        return published.key

    def forget(self, organization: OrganizationId | None) -> None:
        """Read the key anew when it is needed again."""
        with self._lock:
            self._known.pop(organization or OrganizationId(0), None)

    def published(self, organization: OrganizationId) -> PublishedKey:
        """Read what the server has now. Raises KeyMissing when it does not show the organization."""
        reply = self._ask(Call(method="GET", path=f"organization/{organization}"))
        if not reply.is_good:
            raise KeyMissing(
                f"The server does not show the public key of organization {organization}: {reply.message}."
            )
        text = wire.parse_public_key(reply)
        if not text:
            return PublishedKey(None)
        try:
            return PublishedKey(PublicKey.from_wire(text))
        except KeyUnreadable as error:
            return PublishedKey(None, str(error))

    def publish(self, organization: OrganizationId, key: PublicKey) -> None:
        """Give the server the public key of this organization. Raises ConfigError when it does not take it."""
        body = wire.public_key_body(key.wire)
        reply = self._ask(Call(method="PATCH", path=f"organization/{organization}", body=body))
        self.forget(organization)
        if not reply.is_good:
            raise ConfigError(f"The server does not take the public key: {reply.message}.")
        log.info("public_key_uploaded", fingerprint=key.fingerprint)

    def _remember(self, organization: OrganizationId, key: PublicKey) -> None:
        with self._lock:
            self._known[organization] = (key, self._monotonic() + BELIEVED_SECONDS)
            self._known.move_to_end(organization)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)


def ensure_published(keys: OrganizationKeys, organization: OrganizationId, own: PublicKey) -> None:
    """See to it that others seal for the key on this machine. Raises ConfigError when they have another one."""
    try:
        published = keys.published(organization)
    except KeyMissing as error:
        raise ConfigError(error.message) from error
    state = published.state(own)
    if state is KeyState.DIFFERENT:
        raise different_key(own, published)
    if state is KeyState.NONE_THERE:
        keys.publish(organization, own)


def different_key(own: PublicKey, published: PublishedKey) -> ConfigError:
    """Say that the server has another key than this machine."""
    return ConfigError(
        "The server has another public key for this organization than the one that belongs to this node's private key.",
        hint="If the server's is outdated: node-agent key upload --replace -c FILE. "
        "If this machine's is the wrong one: put the right file at encryption.private_key. "
        "All nodes and users of an organization share one key.",
        faults=(f"at the server:   {published}", f"on this machine: {own.fingerprint}"),
    )


def _changed(organization: OrganizationId, shown: PublicKey, pinned: PublicKey) -> KeyChanged:
    return KeyChanged(
        f"The server shows another public key for organization {organization} ({shown.fingerprint}) "
        f"than the one this node holds to ({pinned.fingerprint}).",
        hint="Ask that organization for its fingerprint; if it is the new one: "
        f"node-agent key accept -c FILE {organization}.",
    )


def _not_named(organization: OrganizationId, shown: PublicKey, expected: str) -> KeyChanged:
    return KeyChanged(
        f"The server shows a public key for organization {organization} ({shown.fingerprint}) that is not the one named "
        f"in encryption.fingerprints ({expected}).",
        hint="Ask that organization for its fingerprint; if it is the new one, name it in encryption.fingerprints.",
    )


def _missing(organization: OrganizationId, published: PublishedKey) -> KeyMissing:
    what = f"a public key that cannot be used: {published.fault}" if published.fault else "no public key"
    return KeyMissing(
        f"Organization {organization} has {what}, so nothing can be encrypted for it.",
        hint="Somebody of that organization must set up encryption in the client or at its node, and ask again.",
    )
