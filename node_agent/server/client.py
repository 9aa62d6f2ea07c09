"""The coordinating server behind the Server port.

Owns which call is made for what, which answers end a run, and the few fast tries after a blip. Must not know
how JSON looks, how long anything is tried beyond a few seconds, or what a run does here.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
)

from node_agent.domain.ports import FinalReport, NodeIdentity, OpenRun, ProxiedRequest, ProxiedResponse
from node_agent.domain.run import BlobId, RunId, Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId, Task, TaskId
from node_agent.errors import KeyMissing, RunClosed, RunFailed, ServerUnreachable
from node_agent.payload.chunks import Chunks, Literal, PlainFile, Sequence
from node_agent.payload.codec import PayloadCodec, PlainCodec, SealedCodec
from node_agent.payload.keys import PrivateKey
from node_agent.server import wire
from node_agent.server.blobs import Blobs, uncut
from node_agent.server.exchange import (
    CONNECT_SECONDS,
    READ_SECONDS,
    SHORT_BODY,
    AnswerTooLarge,
    Call,
    Reply,
    Sends,
    Stream,
)
from node_agent.server.keys import KeyTrust, OrganizationKeys
from node_agent.server.listing import list_runs
from node_agent.server.spool import Spool
from node_agent.server.tokens import Tokens

LISTING_LIMIT = 1024 * 1024 * 1024
"""What one answer with inputs may take on disk; the databases behind the server hold no longer text."""
REPORT_SECONDS = 300.0
KNOCK_SECONDS = 2.0
# the connection's time-out also bounds the sending of each piece, and servers pause while they store
REPORT_CONNECT_SECONDS = 30.0

_TOKEN_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.UNPROCESSABLE_ENTITY})
_GATEWAY = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_RUN_GONE = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_NOT_SHOWN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
_NO_SUCH_TASK = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND})
_TASK_GONE, _TASK_OVER = "does not exist", "already finished"


def _is_blip(error: BaseException) -> bool:
    # who asks to be left alone is not asked twice in a second
    return isinstance(error, ServerUnreachable) and not isinstance(error, AnswerTooLarge) and not error.after


def brief_patience(sleep: Callable[[float], None] | None = None) -> Retrying:
    """Make the policy for blips: three tries, and none begun after three seconds."""
    patience = Retrying(
        retry=retry_if_exception(_is_blip),
        stop=stop_after_attempt(3) | stop_after_delay(3),
        wait=wait_exponential(multiplier=0.2, max=1),
        retry_error_callback=_raise_last,
    )
    return patience if sleep is None else patience.copy(sleep=sleep)


def _raise_last(state: RetryCallState) -> NoReturn:
    if state.outcome is None or (error := state.outcome.exception()) is None:
        raise AssertionError("tried without outcome")
    raise error


class HttpServer:
    """The Server port over HTTP; may be used by many threads."""

    def __init__(
        self,
        exchange: Sends,
        tokens: Tokens,
        *,
        key: PrivateKey | None = None,
        spool: Path | None = None,
        patience: Retrying | None = None,
        trust: KeyTrust | None = None,
    ) -> None:
        self._exchange = exchange
        self._tokens = tokens
        self._patience = patience or brief_patience()
        self._spool = Spool(spool)
        self.keys = OrganizationKeys(self._ask, trust=trust)
        """Public keys, as the server shows them."""
        self._blobs = Blobs(exchange, tokens, self._ask)
        self._codec: PayloadCodec = PlainCodec() if key is None else SealedCodec(key, self.keys.of)

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    def knock(self) -> None:
        """Find out, at little cost to anybody, whether the server answers."""
        call = Call(
            method="GET",
            path="version",
            limit=SHORT_BODY,
            connect_seconds=KNOCK_SECONDS,
            read_seconds=KNOCK_SECONDS,
            body_seconds=KNOCK_SECONDS,
        )
        wire.parse_version(_good(_settled(self._exchange.send(call))))

    def identify(self) -> NodeIdentity:
        """Log in and learn who this node is."""
        node = self._get(f"node/{self._tokens.node_id()}")
        organization_id, collaboration_id = wire.parse_node(node)
        return wire.parse_identity(
            node=node,
            organization=self._get(f"organization/{organization_id}"),
            collaboration=self._get(f"collaboration/{collaboration_id}"),
        )

    def open_runs(self, task_id: TaskId | None = None) -> Generator[OpenRun, None, None]:
        """List the open runs of this node (of one task, if given), oldest first, page by page.

        The input of a run can be read until the next run is asked for.
        """
        query: dict[str, str | int] = {
            "state": "open",
            "node_id": self._tokens.node_id(),
            "include": "task",
        }
        if task_id is not None:
            query["task_id"] = task_id

        with self._spool.folder() as spool:

            def fetch(number: int, size: int) -> wire.Page:
                paged = {**query, "page": number, "per_page": size}
                with spool.kept_when_good() as place:
                    reply = self._ask(_long_answer(Call(method="GET", path="run", query=paged), place.path))
                    if task_id is not None and reply.status in _NO_SUCH_TASK:
                        return wire.NO_RUNS
                    page = wire.parse_page(_good(reply), self._codec)
                    return replace(page, discard=place.discard)

            yield from list_runs(fetch)

    def is_open(self, run_id: RunId) -> bool:
        """Tell whether the server still wants this run."""
        reply = self._ask_about(run_id)
        if reply.status == HTTPStatus.NOT_FOUND:
            return False
        return wire.parse_run_state(_good(reply)).is_open

    def claimed_at(self, run_id: RunId) -> float | None:
        """Say when a node took the run; None when none did yet. Raises RunClosed."""
        reply = self._ask_about(run_id)
        if reply.status == HTTPStatus.NOT_FOUND:
            raise RunClosed(f"Run {run_id} is not at the server any more.")
        run = wire.parse_run_state(_good(reply))
        if not run.is_open:
            raise RunClosed(f"Run {run_id} is closed at the server.")
        return run.claimed_at

    def claim(self, run_id: RunId, *, at: float) -> None:
        """Tell the server that this node takes the run. Raises RunClosed, RunFailed."""
        reply = self._update(run_id, wire.claim_body(at))
        if not _is_good(reply):
            raise RunFailed(f"The server refused that this node takes the run: {reply.message}")

    def announce(self, run_id: RunId, status: Status) -> None:
        """Tell the server an intermediate status. Raises RunClosed."""
        _good(self._update(run_id, wire.status_body(status)))

    def container_token(self, task_id: TaskId, image: str) -> Secret:
        """Get the credential of one algorithm container. Raises RunClosed, RunFailed."""
        body = wire.container_token_body(task_id, image)
        reply = self._ask(Call(method="POST", path="token/container", body=body))
        if _is_good(reply):
            return wire.parse_container_token(reply)
        if _TASK_GONE in (reply.message or ""):
            raise RunClosed(f"The server has closed task {task_id}: {reply.message}")
        if _TASK_OVER in (reply.message or ""):
            # One failed run ends a task, but the other runs stay open: somebody has to close this one.
            raise RunFailed(
                "The server gives this run no token: the task is over, because a run of it failed elsewhere"
                " or because it was killed."
            )
        raise RunFailed(f"The node could not obtain algorithm container token: {reply.message}")

    @contextmanager
    def open_input(self, blob: BlobId) -> Iterator[Iterator[bytes]]:
        """Open an input that lies in the blob store; it can be read within the block.

        Raises InputUnreadable and BlobUnreadable, also while it is read.
        """
        with self._blobs.opened(blob) as pieces:
            yield uncut(self._codec.decode_blob(pieces))

    def store_result(self, run_id: RunId, final: FinalReport) -> BlobId:
        """Store the result in the blob store, before it is reported. Raises RunClosed when that is refused for good."""
        if final.result is None:
            raise AssertionError("no result to store")
        try:
            content = self._stored_result(final, final.result)
        except KeyMissing as error:
            self._end_without_result(run_id, final, str(error))
        reply = self._blobs.store(content)
        if reply.status in _TOKEN_REFUSED:
            raise _unexpected(reply)
        if not _is_good(_settled(reply)):
            self.keys.forget(final.init_org_id)
            self._report_refusal(run_id, final, reply)
        return wire.parse_blob(reply)

    def report(self, run_id: RunId, final: FinalReport) -> None:
        """Deliver the final message. Raises RunClosed when the server refuses it for good."""
        try:
            result = self._reported_result(final)
        except KeyMissing as error:
            self._end_without_result(run_id, final, str(error))
        call = Call(
            method="PATCH",
            path=f"run/{run_id}",
            body=wire.final_body(final, result),
            skip_large=True,
            connect_seconds=REPORT_CONNECT_SECONDS,
            read_seconds=REPORT_SECONDS,
        )
        reply = _settled(self._authorised(call))
        if _is_good(reply) or (_is_closed(reply) and self._arrived_before(run_id, final)):
            return
        # whatever was wrong with it, the next try begins with the key that the server has then
        self.keys.forget(final.init_org_id)
        _raise_if_over(run_id, reply)
        self._report_refusal(run_id, final, reply)

    @contextmanager
    def forward(self, request: ProxiedRequest) -> Iterator[ProxiedResponse]:
        """Pass an algorithm's call on with the algorithm's own token; the answer is open within the block.

        Raises ServerUnreachable only, also while the answer is read.
        """
        if _climbs(request.path):
            yield ProxiedResponse(status=404, content_type="application/json", body=[b'{"msg": "Not found"}'])
            return
        with ExitStack() as stack:
            call = _forwarded(request)

            def open_call() -> Stream:
                return stack.enter_context(self._exchange.open(call))

            # a repeated POST could create a task twice
            stream = self._patience(open_call) if request.method == "GET" else open_call()
            yield ProxiedResponse(status=stream.status, content_type=stream.content_type, body=stream.pieces)

    # --- what a policy asks for ---

    def find_task(self, task_id: TaskId) -> Task | None:
        """Look a task up; None when the server has none or does not show it."""
        reply = self._look_up(f"task/{task_id}")
        return None if reply is None else wire.parse_task(reply)

    def organization_name(self, organization_id: OrganizationId) -> str | None:
        """Look the name of an organization up; None when the server has none or does not show it."""
        reply = self._look_up(f"organization/{organization_id}")
        return None if reply is None else wire.parse_organization_name(reply)

    def store_url(self, store_id: int) -> str | None:
        """Look the address of an algorithm store up; None when the server has none or does not show it."""
        reply = self._look_up(f"algorithmstore/{store_id}")
        return None if reply is None else wire.parse_store_url(reply)

    def _look_up(self, path: str) -> Reply | None:
        reply = self._ask(Call(method="GET", path=path))
        return None if reply.status in _NOT_SHOWN else _good(reply)

    # --- calls with the node's own token ---

    def _get(self, path: str) -> Reply:
        return _good(self._ask(Call(method="GET", path=path)))

    def _ask_about(self, run_id: RunId) -> Reply:
        """Ask for one run; the answer repeats the whole input, which is not kept."""
        with self._spool.folder() as spool:
            return self._ask(_long_answer(Call(method="GET", path=f"run/{run_id}"), spool.path))

    def _update(self, run_id: RunId, body: bytes) -> Reply:
        """Change a run; the answer repeats the whole input, which nobody needs. Raises RunClosed."""
        reply = self._ask(Call(method="PATCH", path=f"run/{run_id}", body=body, skip_large=True))
        _raise_if_over(run_id, reply)
        return reply

    def _ask(self, call: Call) -> Reply:
        """Make a call that may be repeated; gives a success or the server's own refusal."""
        return _settled(self._patience(self._try, call))

    def _try(self, call: Call) -> Reply:
        reply = self._authorised(call)
        if reply.status in _GATEWAY:
            raise _unexpected(reply)
        return reply

    def _authorised(self, call: Call) -> Reply:
        """Make a call, and once more with another token if the server does not take this one."""
        token = self._tokens.access_token()
        reply = self._exchange.send(replace(call, token=token))
        if reply.status not in _TOKEN_REFUSED:
            return reply
        return self._exchange.send(replace(call, token=self._tokens.renew(token)))

    # --- reports ---

    def _stored_result(self, final: FinalReport, result: Path) -> Chunks:
        if final.is_sealed:
            return PlainFile(result)
        return self._codec.encode_blob(result, reader=final.init_org_id)

    def _reported_result(self, final: FinalReport) -> Chunks:
        if final.stored_as is not None:
            return Literal(final.stored_as.encode())
        if final.is_sealed and final.result is not None:
            return PlainFile(final.result)
        return self._codec.encode_result(final.result, reader=final.init_org_id)

    def _arrived_before(self, run_id: RunId, final: FinalReport) -> bool:
        """Tell whether an earlier try of this very report was taken although its answer got lost."""
        reply = self._ask_about(run_id)
        return _is_good(reply) and wire.is_told(wire.parse_run_state(reply), final)

    def _report_refusal(self, run_id: RunId, final: FinalReport, refused: Reply) -> NoReturn:
        """End a run whose report the server will never take, so that nobody waits for it."""
        why = "it is too large" if refused.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else refused.message
        self._end_without_result(run_id, final, f"The server refused the result of this run: {why}")

    def _end_without_result(self, run_id: RunId, final: FinalReport, reason: str) -> NoReturn:
        self._update(run_id, wire.refusal_body(final, reason))
        raise RunClosed(reason)


def _forwarded(request: ProxiedRequest) -> Call:
    call = Call(method=request.method, path=request.path, query=request.query, token=request.token)
    if request.body is None:
        return call
    is_large = request.body.length > SHORT_BODY
    return replace(
        call,
        body=Sequence(request.body),
        content_type=request.content_type,
        connect_seconds=REPORT_CONNECT_SECONDS if is_large else CONNECT_SECONDS,
        read_seconds=REPORT_SECONDS if is_large else READ_SECONDS,
    )


def _long_answer(call: Call, folder: Path) -> Call:
    return replace(call, spool=folder, limit=LISTING_LIMIT)


def _settled(reply: Reply) -> Reply:
    """Give a success or a refusal by the server itself; anything else may pass, so it is no answer."""
    if _is_good(reply):
        if not reply.is_json:  # a network's login page, or somebody else altogether: nothing was done
            raise _unexpected(reply)
        return reply
    if reply.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return reply
    refused = HTTPStatus.BAD_REQUEST <= reply.status < HTTPStatus.INTERNAL_SERVER_ERROR
    # a gateway in front of a server that is being replaced says 403 or 404 too, but not in the server's words
    if refused and reply.status not in _PASSING and reply.message is not None:
        return reply
    raise _unexpected(reply)


def _good(reply: Reply) -> Reply:
    if not _is_good(reply):
        raise _unexpected(reply)
    return reply


def _is_good(reply: Reply) -> bool:
    return reply.is_good


def _is_closed(reply: Reply) -> bool:
    return reply.status == HTTPStatus.BAD_REQUEST and wire.FINISHED_ALREADY in (reply.message or "")


def _raise_if_over(run_id: RunId, reply: Reply) -> None:
    if reply.status in _RUN_GONE or _is_closed(reply):
        raise RunClosed(f"The server has closed run {run_id}: {reply.message}")


def _unexpected(reply: Reply) -> ServerUnreachable:
    text = f"{reply.call} was answered with {reply.status}: {reply.excerpt()}"
    if reply.is_good:
        text = f"{reply.call} was answered with a page that is not the server's ({reply.content_type or 'of no kind'})."
    return ServerUnreachable(text, after=reply.pause)


def _climbs(path: str) -> bool:
    """Tell whether a path would end up elsewhere than it says once the HTTP library tidied it."""
    return "\\" in path or any(part in {"", ".", ".."} for part in path.split("/"))
