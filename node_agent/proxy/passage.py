"""One call on its way through the proxy: its bodies, and how it is answered or refused.

Bodies never lie in memory as a whole. An answer is complete before its first byte goes out: what fails on the way can
still be said in a status, and a container that reads slowly holds a file and no thread.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import BinaryIO, cast

from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

from node_agent.domain.ports import Body
from node_agent.payload.longtext import outlined_json, spool_json
from node_agent.proxy.spool import Spool, SpooledBody

MAX_SKELETON = 4 << 20
"""What of a JSON body is parsed in memory: all but its long texts."""
SHORT = 256
"""Bytes of the texts that matter for what belongs to whom."""
_PIECE = 256 << 10


class Refusal(Exception):
    """The call goes no further; the algorithm is told why."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.response = json_response(status, text)
        self.response.headers.update(headers or {})


class Passage:
    """The bodies of one call; all but the answer are gone when *stack* is closed."""

    def __init__(
        self, request: Request, spool: Spool, max_body: int, stack: ExitStack, *, owner: str
    ) -> None:
        self._request = request
        self._spool = spool
        self._max_body = max_body
        self._stack = stack
        self._owner = owner
        self._handed_over: SpooledBody | None = None

    @property
    def reader(self) -> str:
        """Give the public key that the caller wants the body sealed for."""
        return self._request.headers.get("X-Public-Key", "")

    def received(self) -> Body:
        """Give the body of the call."""
        length = self._request.content_length or 0
        if length > self._max_body:
            raise Refusal(413, f"The body is larger than the {self._max_body} bytes this node passes on.")
        return _Received(self._request.environ["wsgi.input"], length)

    def keep(self, pieces: Iterable[bytes]) -> SpooledBody:
        """Take a body in as it comes."""
        body = self._begun()
        for piece in pieces:
            if body.length + len(piece) > self._max_body:
                raise Refusal(
                    502, f"The server's answer is larger than the {self._max_body} bytes this node passes on."
                )
            body.append(piece)
        return body

    def parsed(self, body: Body) -> object:
        """Read JSON, its long texts left on disk for the time of the call. Raises BadJson."""
        place = self._stack.enter_context(self._spool.place(self._owner, body.length))
        return spool_json(body, place, limit=self._max_body, skeleton=MAX_SKELETON)

    def outlined(self, body: Body) -> object:
        """Read JSON for the sake of what is short in it. Raises BadJson."""
        return outlined_json(body, threshold=SHORT, limit=self._max_body, skeleton=MAX_SKELETON)

    def changed(self, before: SpooledBody, after: Body) -> SpooledBody:
        """Take a body in that was made from another one."""
        if after is before:
            return before
        body = self._begun()
        for piece in after:
            body.append(piece)
        return body

    def response(self, body: SpooledBody, status: int, content_type: str) -> Response:
        """Hand a body over to whoever sends it."""
        if body.in_memory:
            return Response(b"".join(body), status, content_type=content_type)
        self._handed_over = body
        return Response(
            wrap_file(self._request.environ, cast("BinaryIO", body)),
            status,
            {"Content-Length": str(body.length)},
            content_type=content_type,
            direct_passthrough=True,
        )

    def _begun(self) -> SpooledBody:
        body = self._spool.body(self._owner)
        self._stack.callback(self._done_with, body)
        return body

    def _done_with(self, body: SpooledBody) -> None:
        if body is not self._handed_over:
            body.close()


class _Received:
    """The body of a call, as the HTTP server has kept it."""

    def __init__(self, source: BinaryIO, length: int) -> None:
        self._source = source
        self.length = length

    def __iter__(self) -> Iterator[bytes]:
        self._source.seek(0)
        left = self.length
        while left and (piece := self._source.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


def json_response(status: int, text: str) -> Response:
    """Return an answer in the form of the server's own errors."""
    return Response(json.dumps({"msg": text}), status, content_type="application/json")
