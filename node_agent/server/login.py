"""The first login, begun while the rest of the agent is still being loaded: the server takes half a second for it.

Owns that one thread. What comes of it is found out by whoever asks for a token next. Must not know what starts beside it.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node_agent.domain.secret import Secret
from node_agent.errors import NodeAgentError
from node_agent.server.address import ServerAddress
from node_agent.server.exchange import Exchange
from node_agent.server.tokens import Tokens


class Named(Protocol):
    """A server as a configuration names it."""

    @property
    def url(self) -> str:
        """Where its API is."""

    @property
    def api_key(self) -> Secret:
        """What the node logs in with."""

    @property
    def ca_bundle(self) -> Path | None:
        """Whose certificates it may have; None trusts whom the system trusts."""


@dataclass(frozen=True, slots=True)
class Login:
    """The way to the server, and the tokens for it."""

    exchange: Exchange
    tokens: Tokens

    @classmethod
    def at(cls, server: Named) -> "Login":
        """Build both; nobody is asked yet. Raises ConfigError."""
        exchange = Exchange(ServerAddress.of(server.url, ca_bundle=server.ca_bundle))
        return cls(exchange, Tokens(exchange, server.api_key))

    def begin(self) -> "Login":
        """Ask for the first token, in a thread of its own that nobody waits for."""
        threading.Thread(target=self._ask, name="login", daemon=True).start()
        return self

    def _ask(self) -> None:
        # Who needs the token hears the same again, and says so.
        with suppress(NodeAgentError):
            self.tokens.access_token()
