"""The algorithm stores behind the Stores port: whether a store approved an image with this very content.

Owns the calls to a store, what counts as a confirmation, and how long a silent store is asked again. The coordinating
server's word is not enough: the store itself is asked, and its answer must show the image and the digest. Must not know
which stores may be asked; the node's token goes to whoever it is told to ask.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from node_agent.domain.patterns import is_same_image, shown
from node_agent.domain.policy import parse_image
from node_agent.domain.verdict import Approval
from node_agent.errors import ServerUnreachable, StoreUnreachable
from node_agent.server import wire
from node_agent.server.address import ServerAddress
from node_agent.server.exchange import Call, Exchange, Reply, Sends
from node_agent.server.tokens import Tokens

PATIENCE_SECONDS = 10.0
PAGE_SIZE = 100
MOST_PAGES = 20
ANSWER_LIMIT = 8 * 1024 * 1024
READ_SECONDS = 20.0
_FORGOTTEN_AFTER = 120.0
_YES = Approval(given=True)
_NO_REPLY = Reply(call="", status=0)

Opens = Callable[[str], Sends]
Question = tuple[str, str, str]


class HttpStores:
    """Asks stores over HTTP; may be used by many threads."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        server_url: str,
        open_exchange: Opens,
        patience: float = PATIENCE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._server_url = server_url
        self._open = open_exchange
        self._patience = patience
        self._monotonic = monotonic
        self._silent_since: dict[Question, float] = {}

    def approval(self, url: str, *, image: str, digest: str) -> Approval:
        """Ask a store whether it approved this image with this very content. Raises StoreUnreachable."""
        question = (url, image, digest)
        try:
            given = self._ask(url, image=image, digest=digest)
        except _StoreSilent as silent:
            return self._wait_or_give_up(question, silent)
        self._silent_since.pop(question, None)
        return given

    def _wait_or_give_up(self, question: Question, silent: "_StoreSilent") -> Approval:
        now = self._monotonic()
        since = self._silent_since.get(question, now)
        if now - since > self._patience + _FORGOTTEN_AFTER:  # nobody has asked for long: that was another run
            since = now
        self._silent_since[question] = since
        if now - since < self._patience:
            raise StoreUnreachable(f"The algorithm store {shown(question[0])}: {silent}.") from silent
        self._silent_since.pop(question, None)
        return Approval(
            given=False, reason=f"{silent}; this node kept asking for {self._patience:.0f} seconds"
        )

    def _ask(self, url: str, *, image: str, digest: str) -> Approval:
        exchange = self._open(url.rstrip("/"))
        try:
            return self._confirmed(exchange, image=image, digest=digest)
        finally:
            exchange.close()

    def _confirmed(self, exchange: Sends, *, image: str, digest: str) -> Approval:
        """Ask for this image, and if that does not show it, look through everything the store approved.

        The store looks up what the *tag* is now, which may have moved since it approved this content; and it stumbles
        where it does not reach the registry.
        """
        first = self._asked_for(exchange, image)
        if first.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return Approval(
                given=False, reason=f"it does not answer this node: {first.message or first.status}"
            )
        if _is_good(first) and _shows(wire.parse_algorithms(first), image, digest):
            return _YES
        if any(_shows(page, image, digest) for page in self._pages(exchange)):
            return _YES
        said = "" if _is_good(first) or not first.message else f" (it says: {first.message})"
        return Approval(given=False, reason=f"it has no approved algorithm with the digest {digest}{said}")

    def _asked_for(self, exchange: Sends, image: str) -> Reply:
        try:
            return self._call(exchange, {"image": image})
        except _StoreSilent as silent:
            return silent.reply

    def _pages(self, exchange: Sends) -> Iterator[wire.Algorithms]:
        for number in range(1, MOST_PAGES + 1):
            reply = self._call(exchange, {"page": number, "per_page": PAGE_SIZE})
            if not _is_good(reply):
                return
            page = wire.parse_algorithms(reply)
            yield page
            if not page.has_next:
                return

    def _call(self, exchange: Sends, query: dict[str, str | int]) -> Reply:
        """Make one call; gives a success or the store's own refusal. Raises ServerUnreachable for our server only."""
        token = self._tokens.access_token()
        call = Call(
            method="GET",
            path="algorithm",
            query=query,
            headers={"Server-Url": self._server_url, "Client-Type": "node"},
            limit=ANSWER_LIMIT,
            read_seconds=READ_SECONDS,
        )
        reply = _answer(exchange, replace(call, token=token))
        if reply.status != HTTPStatus.UNAUTHORIZED:
            return reply
        return _answer(exchange, replace(call, token=self._tokens.renew(token)))


class _StoreSilent(Exception):
    """The store gave no answer that can be used; the text says why, and *reply* is the little there is."""

    def __init__(self, text: str, reply: Reply) -> None:
        super().__init__(text)
        self.reply = reply


def _answer(exchange: Sends, call: Call) -> Reply:
    try:
        reply = exchange.send(call)
        if _is_good(reply):
            wire.parse_algorithms(reply)
    except ServerUnreachable as error:
        raise _StoreSilent(f"no usable answer ({error.message})", _NO_REPLY) from error
    refused = HTTPStatus.BAD_REQUEST <= reply.status < HTTPStatus.INTERNAL_SERVER_ERROR
    if _is_good(reply) or (refused and reply.message is not None):
        return reply
    raise _StoreSilent(f"it answered with {reply.status}: {reply.excerpt()}", reply)


def _is_good(reply: Reply) -> bool:
    return reply.status == HTTPStatus.OK


def _shows(page: wire.Algorithms, image: str, digest: str) -> bool:
    """Tell whether an approved algorithm is this image with this digest; anything less proves nothing."""
    return any(_is_it(algorithm, image, digest) for algorithm in page.algorithms)


def _is_it(algorithm: wire.Algorithm, image: str, digest: str) -> bool:
    if not algorithm.is_approved or algorithm.digest != digest:
        return False
    wanted, registered = parse_image(image), parse_image(algorithm.image)
    return wanted is not None and registered is not None and is_same_image(wanted.name, registered.name)


def open_exchange_for(ca_bundle: Path | None) -> Opens:
    """Give what opens connections to a store, with the certificate authorities of the coordinating server."""
    return lambda url: Exchange(ServerAddress.of(url, ca_bundle=ca_bundle))
