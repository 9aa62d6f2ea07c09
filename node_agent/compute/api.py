"""The compute API as a WSGI application: what each route asks, of whom, and in which order.

Owns HTTP and nothing else: who asks is found out by authentication.py, whether a job may run by admitting.py, and what
becomes of it by the job desk. Nothing of a request is echoed, and nothing of it but its route is logged.

Every signed request goes the same way: fields are read, the asker is recognised, the fields are checked against what
there is, and only then the nonce is used up, before anything is done.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import structlog
from werkzeug.exceptions import NotFound
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from node_agent.compute.access import Access
from node_agent.compute.admitting import admit, container_fault
from node_agent.compute.answers import answered, refused
from node_agent.compute.arrivals import (
    find_route,
    read_rest,
    route_of,
    sent_by,
    signature_fields,
    wants_to_be_known,
)
from node_agent.compute.authentication import Asker, Authentication, bad_signature
from node_agent.compute.desk import JobDesk
from node_agent.compute.documents import document, file_list
from node_agent.compute.fields import BadFields, Fields
from node_agent.compute.layouts import Operation
from node_agent.compute.ledger import JobRecord, Ledger
from node_agent.compute.objects import Environment, given_in, reduced
from node_agent.compute.openapi import openapi
from node_agent.compute.pace import Pace, Places, peer_name
from node_agent.compute.results import ResultFile
from node_agent.compute.routes import BASE, ENDPOINTS
from node_agent.compute.signatures import Address, parse_address, shown_address
from node_agent.compute.tokens import AuthTokens, BadToken
from node_agent.compute.wishes import NO_PAYMENTS, Refused, Wish, dry_wish, newer_wish, specified_wish
from node_agent.domain.assets import Assets, is_did
from node_agent.domain.ports import Clock

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

LONG_ANSWERS = 16
LONG_ANSWERS_EACH = 8
"""Files and logs on their way at once, of all and of one consumer: fewer than the server has threads."""
_TOO_FAST = 429
_MILLISECONDS = 10**11
"""A point in time above this is not in seconds: clients of the newer dialect count finer."""
_OF_CONTAINERS = ("entrypoint", "image", "tag", "checksum")
_NO_SUCH_FILE = "The index is not that of a result of this job."


class ComputeApi:
    """Answers the calls of consumers."""

    def __init__(
        self,
        *,
        desk: JobDesk,
        ledger: Ledger,
        assets: Assets,
        access: Access,
        authentication: Authentication,
        tokens: AuthTokens,
        pace: Pace,
        clock: Clock,
        own_address: Address,
        software: str,
        version: str,
        unsigned_status: bool,
    ) -> None:
        self._desk = desk
        self._ledger = ledger
        self._assets = assets
        self._access = access
        self._authentication = authentication
        self._tokens = tokens
        self._pace = pace
        self._clock = clock
        self._own_address = own_address
        self._about = {"software": software, "version": version}
        self._unsigned_status = unsigned_status
        self._places = Places(most=LONG_ANSWERS, most_each=LONG_ANSWERS_EACH)
        self._actions: Mapping[str, Callable[[Request], Response]] = {
            "root": self._root,
            "nonce": self._nonce,
            "computeEnvironments": self._environments,
            "computeStart": self._start,
            "computeStatus": self._status,
            "computeStop": self._stop,
            "computeDelete": self._delete,
            "computeResult": self._result,
            "createAuthToken": self._create_token,
            "deleteAuthToken": self._delete_token,
            "initializeCompute": self._initialize,
            "fileinfo": self._file_info,
            "document": self._document,
            "openapi": lambda _request: answered(openapi(version=version)),
            "validateContainer": self._validate_container,
            "computeStreamableLogs": self._live_log,
            "freeCompute": self._free_start,
            "generateAuthToken": self._create_newer_token,
            "invalidateAuthToken": self._delete_newer_token,
        }

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one call; whatever happens, the client gets JSON and the agent lives on."""
        request = Request(environ)
        started = time.monotonic()
        response = self._answer(request)
        read_rest(request)
        response.headers["Connection"] = "close"
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        # who asks too often is not to fill the log as well
        log.log(
            logging.DEBUG if response.status_code == _TOO_FAST else logging.INFO,
            "compute_request",
            route=route_of(request),
            status=response.status_code,
            ms=round((time.monotonic() - started) * 1000),
        )
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        try:
            self._pace.take(peer_name(request.remote_addr))
            return self._actions[find_route(request)](request)
        except Exception as error:  # noqa: BLE001 - one for all: what is not foreseen is logged with its traceback
            return refused(error)

    # --- without a signature ----------------------------------------------------------------------------------

    def _root(self, _request: Request) -> Response:
        own = shown_address(self._own_address)
        return answered(
            {
                **self._about,
                "chainIds": [],
                "providerAddress": own,
                "providerAddresses": {"0": own},
                "serviceEndpoints": {name: [method, path] for name, (method, path) in ENDPOINTS.items()},
            }
        )

    def _nonce(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("userAddress")
        address = parse_address(fields.raw("userAddress"))
        if address is None:
            raise BadFields({"userAddress": "The userAddress must be an address."})
        return answered({"nonce": self._ledger.last_nonce(address)})

    def _environments(self, _request: Request) -> Response:
        return answered(self._desk.environments_shown(self._own_address))

    def _validate_container(self, request: Request) -> Response:
        fields = Fields.of(request)
        fault = container_fault(fields.tree)
        if fault:
            raise Refused("", fault)
        shown = {name: fields.text(name) for name in _OF_CONTAINERS if name in fields}
        parameters = fields.raw("consumerParameters")
        return answered(shown if parameters is None else {**shown, "consumerParameters": parameters})

    def _file_info(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("did", "serviceId")
        found = file_list(self._assets, fields.text("did"), fields.text("serviceId"))
        if found is None:
            raise Refused("did", "did_not_found")
        return answered(found)

    def _document(self, request: Request) -> Response:
        did = request.path.rpartition("/")[2]
        found = document(self._assets, did, base=request.host_url.rstrip("/"), own_address=self._own_address)
        if found is None:
            raise NotFound
        return answered(found)

    def _initialize(self, request: Request) -> Response:
        """Say whether a start would be let in, and what to name then; nothing is begun and nothing used up."""
        fields = Fields.of(request)
        fields.demand("consumerAddress")
        consumer = parse_address(fields.raw("consumerAddress"))
        if consumer is None:
            raise BadFields({"consumerAddress": "The consumerAddress must be an address."})
        wish = dry_wish(fields)
        if not wish.newer and (wish.valid_until or 0) <= self._clock.now():
            raise Refused("", "The validUntil value is not correct.")
        _check_resources(wish, self._desk.environment(wish.environment))
        admitted = admit(wish, self._assets, consumer=consumer, access=self._access)
        shown: dict[str, Any] = {"datasets": [{"validOrder": order} for order in admitted.orders]}
        if wish.algorithm.name:
            shown["algorithm"] = {
                "validOrder": admitted.orders[0] if admitted.orders else wish.algorithm.name
            }
        return answered(shown)

    # --- jobs -------------------------------------------------------------------------------------------------

    def _start(self, request: Request) -> Response:
        fields = Fields.of(request)
        if fields.raw("datasets") is not None:
            raise Refused("", NO_PAYMENTS)
        return self._begun(request, fields, Operation.START, specified_wish)

    def _free_start(self, request: Request) -> Response:
        return self._begun(request, Fields.of(request), Operation.FREE_START, newer_wish)

    def _begun(
        self, request: Request, fields: Fields, operation: Operation, read: Callable[[Fields], Wish]
    ) -> Response:
        wish = read(fields)
        asker = self._recognise(request, operation, fields)
        first = wish.data_sets[0].name
        if not self._exists(first):
            # perhaps the beginning of another name, and the digits behind it were no part of the nonce
            raise Refused("dataset.documentId", "did_not_found")
        self._authentication.use_nonce(asker)
        _check_resources(wish, self._desk.environment(wish.environment))
        admitted = admit(wish, self._assets, consumer=asker.address, access=self._access)
        job = self._desk.take_in(wish, admitted, owner=asker.address)
        return answered([self._shown(job)])

    def _exists(self, name: str) -> bool:
        return is_did(name) or self._assets.data_set(name) is not None

    def _status(self, request: Request) -> Response:
        fields = Fields.of(request)
        if wants_to_be_known(request, fields):
            return self._signed_status(request, fields)
        fields.demand("consumerAddress")
        job = self._desk.find(fields.text("jobId")) if self._unsigned_status else None
        if job is None or job.owner != parse_address(fields.raw("consumerAddress")):
            return answered([])
        return answered([reduced(self._shown(job))])

    def _signed_status(self, request: Request, fields: Fields) -> Response:
        asker = self._recognise(request, Operation.STATUS, fields)
        named = fields.text("documentId")
        jobs = self._asked_for(fields, asker, named=named)
        if not jobs and ("jobId" in fields or (named and not self._exists(named))):
            # a text that names nothing is perhaps cut in the wrong place: its nonce is left alone
            return answered([])
        self._authentication.use_nonce(asker)
        return answered([self._shown(job) for job in jobs])

    def _asked_for(self, fields: Fields, asker: Asker, *, named: str) -> list[JobRecord]:
        if "jobId" not in fields:
            jobs = self._desk.jobs_of(asker.address)
        else:
            job = self._desk.find(fields.text("jobId"))
            jobs = [job] if job is not None and job.owner == asker.address else []
        return [job for job in jobs if not named or _is_about(job, named)]

    def _stop(self, request: Request) -> Response:
        job = self._own_job(request, Operation.STOP)
        self._desk.stop(job)
        return answered([self._shown(job)])

    def _delete(self, request: Request) -> Response:
        job = self._own_job(request, Operation.DELETE)
        self._desk.delete(job)
        return answered([self._shown(job)])

    def _own_job(self, request: Request, operation: Operation) -> JobRecord:
        """Find the job of a signed request and use the nonce up; a stranger learns nothing from the refusal."""
        fields = Fields.of(request)
        fields.demand("consumerAddress", "jobId", "nonce")
        asker = self._recognise(request, operation, fields)
        job = self._desk.find(fields.text("jobId"))
        named = fields.text("documentId")
        if job is None or job.owner != asker.address or (named and not _is_about(job, named)):
            raise bad_signature()
        self._authentication.use_nonce(asker)
        return job

    def _result(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("consumerAddress", "jobId", "index", "nonce")
        asker, job = self._reader(request, Operation.RESULT, fields)
        files = self._desk.files(job)
        index = fields.whole("index")
        if index is None or index >= len(files):
            raise BadFields({"index": _NO_SUCH_FILE})
        give_back = self._places.take(asker.address)
        try:
            self._authentication.use_nonce(asker)
            response = self._file(request, job, files[index])
        except BaseException:
            give_back()
            raise
        response.call_on_close(give_back)
        return response

    def _file(self, request: Request, job: JobRecord, found: ResultFile) -> Response:
        try:
            response = send_file(
                self._desk.path(job, found.index),
                request.environ,
                mimetype="application/octet-stream",
                as_attachment=True,
                download_name=found.filename,
                conditional=True,
                etag=f"{job.id}-{found.index}",
            )
        except FileNotFoundError:
            raise BadFields({"index": _NO_SUCH_FILE}) from None
        # else nobody would be told when the last byte is sent
        response.direct_passthrough = False
        response.headers["Access-Control-Expose-Headers"] = "Content-Disposition"
        return response

    def _live_log(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("consumerAddress", "jobId", "nonce")
        asker, job = self._reader(request, Operation.LOG, fields)
        give_back = self._places.take(asker.address)
        try:
            self._authentication.use_nonce(asker)
            written = self._desk.live_log(job)
        except BaseException:
            give_back()
            raise
        if written is None:
            give_back()
            return answered({"error": "Job is not running, or its log is not shared."}, 404)
        response = Response(written, content_type="application/octet-stream")
        response.call_on_close(give_back)
        return response

    def _reader(self, request: Request, operation: Operation, fields: Fields) -> tuple[Asker, JobRecord]:
        """Find the job somebody wants to read of; a stranger learns nothing from the refusal."""
        asker = self._recognise(request, operation, fields)
        job = self._desk.find(fields.text("jobId"))
        if job is None or not _may_read(job, asker.address):
            raise bad_signature()
        return asker, job

    def _shown(self, job: JobRecord) -> dict[str, Any]:
        return self._desk.shown(job, base=BASE)

    def _recognise(self, request: Request, operation: Operation, fields: Fields) -> Asker:
        asker = self._authentication.recognise(operation, fields, sent_by(request))
        self._pace.take(f"address:{asker.address}")
        return asker

    # --- tokens -----------------------------------------------------------------------------------------------

    def _create_token(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("address", "expiration", "nonce", *signature_fields(request))
        return self._new_token(request, fields, "expiration", fields.whole("expiration"))

    def _create_newer_token(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("address", "nonce", *signature_fields(request))
        until = fields.whole("validUntil")
        if until is not None and until > _MILLISECONDS:
            until //= 1000
        return self._new_token(request, fields, "validUntil", until)

    def _new_token(self, request: Request, fields: Fields, name: str, wanted: int | None) -> Response:
        asker = self._signer(request, Operation.CREATE_TOKEN, fields)
        try:
            until = self._tokens.expiry(wanted)
        except BadToken as refusal:
            raise BadFields({name: str(refusal)}) from refusal
        self._authentication.use_nonce(asker)
        return answered({"token": self._tokens.create(asker.address, expires_at=until, nonce=asker.nonce)})

    def _delete_token(self, request: Request) -> Response:
        self._revoke(request)
        return answered({"success": "Token has been deactivated."})

    def _delete_newer_token(self, request: Request) -> Response:
        self._revoke(request)
        return answered({"success": True})

    def _revoke(self, request: Request) -> None:
        fields = Fields.of(request)
        fields.demand("address", "token", "nonce", *signature_fields(request))
        asker = self._signer(request, Operation.DELETE_TOKEN, fields)
        self._authentication.use_nonce(asker)
        try:
            self._tokens.revoke(fields.text("token"), asker.address)
        except BadToken as refusal:
            raise Refused("", str(refusal)) from refusal

    def _signer(self, request: Request, operation: Operation, fields: Fields) -> Asker:
        """Find out who asks for a token, or for the end of one: a token is no proof of that."""
        if self._authentication.only_signed_bodies:
            raise Refused("", "Tokens are not used here: every request is signed with its body.")
        asker = self._authentication.recognise_signer(operation, fields, sent_by(request))
        self._pace.take(f"address:{asker.address}")
        return asker


def _check_resources(wish: Wish, environment: Environment) -> None:
    given = given_in(environment)
    if any(amount > given.get(name, 0) for name, amount in wish.resources.items()):
        raise Refused("resources", "not_available")


def _is_about(job: JobRecord, name: str) -> bool:
    return name in {*job.wish["inputs"], *job.wish["labels"]}


def _may_read(job: JobRecord, address: Address) -> bool:
    return address == job.owner or address in job.wish.get("viewers", ())
