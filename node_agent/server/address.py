"""Where the coordinating server is reached and how its certificate is checked.

Owns the split of one configured URL into REST base and Socket.IO root. Must not know what is said there.
"""

import http.cookiejar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests

from node_agent import __version__
from node_agent.server.prompt import PromptAdapter

USER_AGENT = f"node-agent/{__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """The two places one server is reached at."""

    rest: str
    """REST base with its path, without a trailing slash."""
    root: str
    """Scheme and host: Socket.IO lives at the root, whatever the REST path is."""
    ca_bundle: Path | None = None

    @classmethod
    def of(cls, url: str, *, ca_bundle: Path | None = None) -> "ServerAddress":
        """Read the configured URL."""
        parts = urlsplit(url)
        return cls(rest=url.rstrip("/"), root=f"{parts.scheme}://{parts.netloc}", ca_bundle=ca_bundle)


class ServerSession(requests.Session):
    """A session that trusts the configured authorities and adds no credentials of its own accord."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__()
        self.headers["User-Agent"] = USER_AGENT
        self.auth = _leave_alone
        for scheme in ("http://", "https://"):
            self.mount(scheme, PromptAdapter())
        self.verify = str(address.ca_bundle) if address.ca_bundle else True

    def get_redirect_target(self, resp: Any) -> None:
        """Follow no redirect: it may lead elsewhere, and turns some calls into others."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Let the configured bundle win over REQUESTS_CA_BUNDLE."""
        if verify is None and isinstance(self.verify, str):
            verify = self.verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def rest_session(address: ServerAddress) -> ServerSession:
    """Give a session for REST calls."""
    session = ServerSession(address)
    # one session carries the node's calls and those of many algorithms: a cookie would travel between them
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return session


def socket_session(address: ServerAddress) -> ServerSession:
    """Give a session for the socket; its cookies stay, because load balancers use them."""
    session = ServerSession(address)
    if session.verify is True:
        # the websocket library looks for authorities elsewhere unless it is given a file
        found = session.merge_environment_settings(address.root, {}, None, None, None)["verify"]
        session.verify = found if isinstance(found, str) else certifi.where()
    return session


def _leave_alone(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep the request as it is: without this, an entry in ~/.netrc replaces our token."""
    return request
