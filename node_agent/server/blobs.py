"""The blob store of the server: large inputs and results that lie outside its database.

Owns the calls that move them, streamed both ways. Must not know runs, or how a message is encoded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from itertools import islice

from node_agent.domain.run import BlobId
from node_agent.errors import BlobUnreadable, InputUnreadable, NodeAgentError, ServerUnreachable
from node_agent.payload.chunks import Chunks, Sequence
from node_agent.server import wire
from node_agent.server.exchange import Call, Reply, Sends, Stream
from node_agent.server.tokens import Tokens

INPUT_LIMIT = 1024 * 1024 * 1024
"""What an input may take while it travels: as much as one in the server's database may."""
STORE_SECONDS = 300.0
"""How long the server may be silent while it deals with its store."""
SEND_SECONDS = 30.0
"""How long the server may take for the next piece."""
_EXCERPT_PIECES = 4


class Blobs:
    """Inputs out of the store and results into it; may be used by many threads."""

    def __init__(self, exchange: Sends, tokens: Tokens, ask: Callable[[Call], Reply]) -> None:
        self._exchange = exchange
        self._tokens = tokens
        self._ask = ask
        self._length_is_told = False

    @contextmanager
    def opened(self, blob: BlobId) -> Iterator[Iterator[bytes]]:
        """Give an input as the store keeps it. Raises InputUnreadable, BlobUnreadable."""
        self._make_sure_of_store()
        call = Call(
            method="GET",
            path=f"blobstream/{blob}",
            token=self._tokens.access_token(),
            read_seconds=STORE_SECONDS,
        )
        with self._exchange.open(call) as stream:
            if stream.status != HTTPStatus.OK:
                raise _refusal(call, stream)
            yield bounded(stream.pieces, limit=INPUT_LIMIT)

    def store(self, content: Chunks) -> Reply:
        """Put a result into the store, and give what the server answered.

        Servers read an upload of untold length piece by piece, and take any other into memory as a whole. But only some
        can do the former, and nothing tells which; so the next try after a failure is of the other kind.
        """
        self._make_sure_of_store()
        call = Call(
            method="POST",
            path="blobstream",
            token=self._tokens.access_token(),
            body=Sequence(content) if self._length_is_told else _Unmeasured(content),
            content_type="application/octet-stream",
            connect_seconds=SEND_SECONDS,
            read_seconds=STORE_SECONDS,
        )
        try:
            reply = self._exchange.send(call)
        except ServerUnreachable:
            self._length_is_told = not self._length_is_told
            raise
        if not reply.is_good:
            self._length_is_told = not self._length_is_told
        return reply

    def _make_sure_of_store(self) -> None:
        """Ask whether there is a store; a refused token is renewed here, and not when half of a result is sent."""
        reply = self._ask(Call(method="GET", path="blobstream/status"))
        if not (reply.is_good and wire.has_blob_store(reply)):
            raise ServerUnreachable(
                "The server says that it has no blob store, although the input of a run lies in one."
            )


class _Unmeasured:
    """Bytes whose number is not told."""

    def __init__(self, content: Chunks) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._content)


def _refusal(call: Call, stream: Stream) -> NodeAgentError:
    beginning = b"".join(islice(stream.pieces, _EXCERPT_PIECES))
    reply = Reply(call=str(call), status=stream.status, content_type=stream.content_type, body=beginning)
    if reply.message is None:  # not the server's own words
        return ServerUnreachable(f"{call} was answered with {reply.status}: {reply.excerpt()}")
    if reply.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InputUnreadable(f"The server does not give this node the input of this run: {reply.message}")
    return BlobUnreadable(
        f"The server cannot read the input of this run from its blob store: {reply.message}"
    )


def bounded(pieces: Iterator[bytes], *, limit: int) -> Iterator[bytes]:
    """Pass an input on as long as it has at most *limit* bytes. Raises InputUnreadable."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise InputUnreadable(f"The input is larger than {limit:,} bytes, which this node does not take.")
        yield piece


def uncut(content: Iterator[bytes]) -> Iterator[bytes]:
    """Pass an input on, and raise BlobUnreadable at its end when it looks as if something were missing there.

    The server ends such an answer by closing the connection, also when its store went away in the middle.
    """
    first = last = b""
    for piece in content:
        first = first or piece[:1]
        last = piece.rstrip()[-1:] or last
        yield piece
    if first == b"{" and last != b"}":
        raise BlobUnreadable("What the blob store gave begins as JSON and ends in the middle of it.")
