"""HTTP connections that confirm at once what they receive.

A server that writes the head and the body of an answer separately waits, before the second, until the first is
confirmed; the system puts the confirmation off for 40 ms in the hope of something to send with it. That is longer than
most answers take. Owns this one option of the sockets. Must not know what is asked.
"""

import socket
from contextlib import suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


def confirm_at_once(line: Any) -> None:
    """Have the next packets confirmed as they come; the system forgets this by itself after a few."""
    # not every kind of line has the option: one within another, for a proxy, has none at all
    with suppress(OSError, AttributeError):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class PromptConnection(HTTPConnection):
    """A connection without encryption."""

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        """Read the answer's head."""
        confirm_at_once(self.sock)
        return super().getresponse()


class PromptSecureConnection(HTTPSConnection):
    """A connection with encryption."""

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        """Read the answer's head."""
        confirm_at_once(self.sock)
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    ConnectionCls = PromptConnection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = PromptSecureConnection


class PromptAdapter(HTTPAdapter):
    """Has a session make such connections, also through a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Prepare the direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the connections through a proxy."""
        pools = super().proxy_manager_for(*args, **kwargs)
        pools.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return pools
