"""The owner's grants, given and taken back from the command line, whether the agent runs or never did.

The books are one file that several processes may write to, so no agent is asked. Must not know how a grant is written
on a command line or shown.
"""

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from node_agent.compute.ledger import FILE_NAME, Grant, Ledger
from node_agent.compute.offer import data_set_named, data_sets_of
from node_agent.config import Settings
from node_agent.domain.assets import is_did
from node_agent.errors import ConfigError
from node_agent.store.disk import refuse_another_user


class GrantState(StrEnum):
    """Whether a grant still lets in, and if not, why."""

    HOLDS = "holds"
    USED_UP = "used up"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenGrant:
    """A grant as it is now."""

    grant: Grant
    state: GrantState
    label: str | None
    """The label of its data set; None when that is not offered any more."""


def create_grant(
    settings: Settings,
    *,
    consumer: str,
    data_set: str,
    uses: int | None,
    expires_at: float | None,
    now: float,
) -> SeenGrant:
    """Write a grant down for a data set that is offered. Raises ConfigError."""
    offered = data_set_named(settings, data_set)
    grant = Grant(
        # looks like the transaction that clients are used to send as their right
        id=f"0x{secrets.token_hex(32)}",
        consumer=consumer,
        data_set=offered.did,
        uses_left=uses,
        expires_at=expires_at,
        created_at=now,
    )
    with _books(settings.state_dir) as ledger:
        ledger.add_grant(grant)
    return _seen(settings, grant, now)


def list_grants(
    settings: Settings, *, consumer: str | None, data_set: str | None, now: float
) -> list[SeenGrant]:
    """List the grants, oldest first; before there are books there are none. Raises ConfigError."""
    # grants may outlive the offer of their data set
    did = data_set if data_set is None or is_did(data_set) else data_set_named(settings, data_set).did
    if not (settings.state_dir / FILE_NAME).exists():
        return []
    with _books(settings.state_dir) as ledger:
        found = ledger.grants(consumer=consumer, data_set=did)
    return [_seen(settings, grant, now) for grant in found]


def revoke_grant(settings: Settings, grant_id: str, *, now: float) -> SeenGrant:
    """Take a grant back; one that was taken back before stays so. Raises ConfigError."""
    found = None
    if (settings.state_dir / FILE_NAME).exists():
        with _books(settings.state_dir) as ledger:
            ledger.revoke_grant(grant_id, at=now)
            found = ledger.grant(grant_id)
    if found is None:
        raise ConfigError(
            f"There is no grant {grant_id[:80]} in {settings.state_dir / FILE_NAME}.",
            hint="`node-agent grant list` shows every grant with its id.",
        )
    return _seen(settings, found, now)


def state_of(grant: Grant, now: float) -> GrantState:
    """Say whether a grant still lets in."""
    if grant.revoked_at is not None:
        return GrantState.REVOKED
    if grant.expires_at is not None and now >= grant.expires_at:
        return GrantState.EXPIRED
    return GrantState.USED_UP if grant.uses_left == 0 else GrantState.HOLDS


def _seen(settings: Settings, grant: Grant, now: float) -> SeenGrant:
    labels: dict[str, str] = {data_set.did: data_set.label for data_set in data_sets_of(settings)}
    return SeenGrant(grant=grant, state=state_of(grant, now), label=labels.get(grant.data_set))


@contextmanager
def _books(state_dir: Path) -> Iterator[Ledger]:
    _make_place(state_dir)
    with closing(Ledger(state_dir)) as ledger:
        yield ledger


def _make_place(state_dir: Path) -> None:
    """Make the folder as the agent would, and no file that the agent could not open later."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_another_user(state_dir, command="grant")
    except OSError as error:
        raise ConfigError(
            f"The state directory {state_dir} cannot be made: {error.strerror}.",
            hint="Run this command as the agent's user, or make the folder for it.",
        ) from error
