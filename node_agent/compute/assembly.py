"""The listener of the compute API, put together. What it needs comes with the extra `compute`, so it is loaded only here.

Must not know runs or containers.
"""

from node_agent.compute.access import (
    Access,
    AskedCommand,
    AskedService,
    DenyEverybody,
    Grants,
    ListedAddresses,
)
from node_agent.compute.api import ComputeApi
from node_agent.compute.authentication import Authentication
from node_agent.compute.callback import fetch_of
from node_agent.compute.desk import JobDesk
from node_agent.compute.ledger import Ledger
from node_agent.compute.pace import Pace
from node_agent.compute.server import Certificate, ComputeServer
from node_agent.compute.signatures import Address
from node_agent.compute.tokens import AuthTokens
from node_agent.config import Settings
from node_agent.domain.assets import Assets
from node_agent.domain.joboffer import AccessKind
from node_agent.domain.ports import Clock

_BURST_SECONDS = 20
"""Who was quiet may ask at once for what he may ask in so many seconds."""


def listener_of(
    settings: Settings,
    *,
    desk: JobDesk,
    ledger: Ledger,
    assets: Assets,
    clock: Clock,
    own_address: Address,
    version: str,
) -> ComputeServer:
    """Put the listener together; it is not started. Raises ConfigError."""
    section = settings.compute_api
    tokens = AuthTokens(ledger, clock)
    api = ComputeApi(
        desk=desk,
        ledger=ledger,
        assets=assets,
        access=_access_of(settings, ledger, clock),
        authentication=Authentication(
            ledger, tokens, node=own_address, now=clock.now, only_signed_bodies=section.signed_bodies
        ),
        tokens=tokens,
        pace=Pace(
            per_second=section.requests_per_second,
            burst=int(section.requests_per_second * _BURST_SECONDS),
            monotonic=clock.monotonic,
        ),
        clock=clock,
        own_address=own_address,
        software="node-agent",
        version=version,
        unsigned_status=section.unsigned_status,
    )
    host, _, port = (section.listen or "").rpartition(":")
    certificate = (
        None if section.tls is None else Certificate(chain=section.tls.certificate, key=section.tls.key)
    )
    return ComputeServer(api, address=host.strip("[]"), port=int(port), certificate=certificate)


def _access_of(settings: Settings, ledger: Ledger, clock: Clock) -> Access:
    section = settings.compute_api
    if section.access is AccessKind.COMMAND and section.command is not None:
        return AskedCommand(section.command)
    if section.access is AccessKind.CALLBACK and section.callback is not None:
        return AskedService(fetch_of(section.callback, ca_bundle=section.callback_ca_bundle))
    if section.access is AccessKind.GRANTS:
        return Grants(ledger, clock)
    if section.access is AccessKind.ADDRESSES:
        return ListedAddresses(section.addresses)
    return DenyEverybody()
