"""The embedded server in the place of the real one: the same names, so that the same tests and clients use either.

Owns only the likeness. Must not know agents or tasks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from node_agent.sandbox.server import CollaborationPlan, Plan, SandboxServer
from tests.lab.vantage6 import COLLABORATION


class SandboxLab:
    """An embedded server with what `RealServer` shows of itself."""

    def __init__(
        self,
        organizations: Sequence[str] = ("alpha", "beta", "gamma"),
        *,
        api_path: str = "/api",
        host: str = "127.0.0.1",
        state_dir: Path | None = None,
        outsiders: Sequence[str] = (),
        encrypted: bool = False,
    ) -> None:
        together = CollaborationPlan(
            name=COLLABORATION, organizations=tuple(organizations), encrypted=encrypted
        )
        apart = CollaborationPlan(name="elsewhere", organizations=tuple(outsiders))
        plan = Plan(
            organizations=(*organizations, *outsiders),
            collaborations=(together, apart) if outsiders else (together,),
        )
        self.server = SandboxServer(plan, host=host, api_path=api_path, state_dir=state_dir)
        self.organizations = tuple(organizations)
        self.organization_ids = self.server.organization_ids
        self.node_ids = self.server.node_ids
        self.collaboration_id = self.server.collaboration_id
        self.passwords = {name: secret.reveal() for name, secret in self.server.passwords.items()}
        self.api_keys = {name: secret.reveal() for name, secret in self.server.api_keys.items()}

    @property
    def root(self) -> str:
        """Return the address without the API's path."""
        return self.server.root

    @property
    def url(self) -> str:
        """Return the REST base."""
        return self.server.url

    def start(self) -> None:
        """Listen, on the same port as before."""
        self.server.start()

    def stop(self) -> None:
        """Go away as in an outage."""
        self.server.stop()

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
