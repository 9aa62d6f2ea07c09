"""The compute API as a WSGI application: routes, answers, and refusals in the words its clients expect.

Owns HTTP and nothing else: who asks is found out by authentication.py, whether a job may run by admitting.py, and what
becomes of it by the job desk. Nothing of a request is echoed, and nothing of it but its route is logged.

Every signed request goes the same way: fields are read, the asker is recognised, the fields are checked against what
there is, and only then the nonce is used up, before anything is done.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from node_agent.compute.access import Access
from node_agent.compute.admitting import admit, container_fault
from node_agent.compute.authentication import Asker, Authentication, bad_signature, token_in
from node_agent.compute.desk import JobDesk, NoRoom
from node_agent.compute.documents import document, file_list
from node_agent.compute.fields import BadFields, Fields
from node_agent.compute.layouts import Operation
from node_agent.compute.ledger import JobRecord, Ledger
from node_agent.compute.objects import reduced
from node_agent.compute.openapi import openapi
from node_agent.compute.pace import Pace, TooFast
from node_agent.compute.signatures import Address, parse_address
from node_agent.compute.tokens import AuthTokens, BadToken
from node_agent.compute.wishes import Refused, Wish, dry_wish, newer_wish, specified_wish
from node_agent.domain.assets import Assets
from node_agent.domain.ports import Clock
from node_agent.errors import Transient

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

BASE = "/api/services"
_UNKNOWN_JOB = "jobId"


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
            "openapi": lambda _request: _json(openapi(version=version)),
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
        response = self._answered(request)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        log.info(
            "compute_request",
            method=request.method[:10],
            path=request.path[:100],
            status=response.status_code,
            ms=round((time.monotonic() - started) * 1000),
        )
        return response(environ, start_response)

    def _answered(self, request: Request) -> Response:  # noqa: PLR0911 - one for each kind of refusal
        try:
            self._pace.take(f"peer:{request.remote_addr}")
            name, _ = ROUTES.bind_to_environ(request.environ).match()
            return self._actions[name](request)
        except BadFields as refusal:
            return _bad_fields(refusal)
        except Refused as refusal:
            return _json(refusal.body, 400)
        except NoRoom:
            return _json({"error": "Too many jobs are waiting here; try again later."}, 429, retry_after=60)
        except TooFast as refusal:
            return _json({"error": "Too many requests."}, 429, retry_after=refusal.seconds)
        except HTTPException as error:
            return _http_error(error)
        except Transient as error:
            log.warning("compute_request_failed", reason=str(error))
            return _json({"error": "The node cannot do this now; try again later."}, 503, retry_after=5)
        except Exception:
            log.exception("compute_request_bug")
            return _json(
                {"error": "The node failed at this request; its operator finds why in its log."}, 500
            )

    # --- without a signature ----------------------------------------------------------------------------------

    def _root(self, request: Request) -> Response:
        own = self._own_address
        return _json(
            {
                **self._about,
                "chainIds": [],
                "providerAddress": own,
                "providerAddresses": {"0": own},
                "serviceEndpoints": {name: [method, path] for name, (method, path) in ENDPOINTS.items()},
                "url": request.host_url,
            }
        )

    def _nonce(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("userAddress")
        address = parse_address(fields.raw("userAddress"))
        if address is None:
            raise BadFields({"userAddress": "The userAddress must be an address."})
        return _json({"nonce": self._ledger.last_nonce(address)})

    def _environments(self, _request: Request) -> Response:
        return _json(self._desk.environments_shown(self._own_address))

    def _validate_container(self, request: Request) -> Response:
        container = dict(Fields.of(request).tree)
        fault = container_fault(container)
        if fault:
            return _json({"error": fault}, 400)
        return _json(container)

    def _file_info(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("did", "serviceId")
        found = file_list(self._assets, fields.text("did"), fields.text("serviceId"))
        if found is None:
            raise Refused("did", "did_not_found")
        return _json(found)

    def _document(self, request: Request) -> Response:
        did = request.path.rpartition("/")[2]
        found = document(self._assets, did, base=request.host_url.rstrip("/"), own_address=self._own_address)
        if found is None:
            raise NotFound
        return _json(found)

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
        self._desk.environment(wish.environment)
        admitted = admit(wish, self._assets, consumer=consumer, access=self._access)
        shown: dict[str, Any] = {"datasets": [{"validOrder": order} for order in admitted.orders]}
        if wish.algorithm.name:
            shown["algorithm"] = {
                "validOrder": admitted.orders[0] if admitted.orders else wish.algorithm.name
            }
        return _json(shown)

    # --- jobs -------------------------------------------------------------------------------------------------

    def _start(self, request: Request) -> Response:
        fields = Fields.of(request)
        if fields.raw("datasets") is not None:
            raise Refused("", "payments not supported; use freeCompute")
        return self._begun(request, fields, Operation.START, specified_wish)

    def _free_start(self, request: Request) -> Response:
        return self._begun(request, Fields.of(request), Operation.FREE_START, newer_wish)

    def _begun(
        self, request: Request, fields: Fields, operation: Operation, read: Callable[[Fields], Wish]
    ) -> Response:
        fields.demand("consumerAddress", "nonce")
        asker = self._recognise(request, operation, fields)
        wish = read(fields)
        self._authentication.use_nonce(asker)
        self._desk.environment(wish.environment)
        admitted = admit(wish, self._assets, consumer=asker.address, access=self._access)
        job = self._desk.take_in(wish, admitted, owner=asker.address)
        return _json([self._shown(request, job)])

    def _status(self, request: Request) -> Response:
        fields = Fields.of(request)
        # the newer dialect asks for a status with a token and without a nonce: that is answered as to anybody
        if fields.text("signature") or ("nonce" in fields and token_in(request.headers)):
            asker = self._recognise(request, Operation.STATUS, fields)
            jobs = self._asked_for(fields, asker)
            self._authentication.use_nonce(asker)
            return _json([self._shown(request, job) for job in jobs])
        fields.demand("consumerAddress")
        job = self._desk.find(fields.text("jobId")) if self._unsigned_status else None
        if job is None or job.owner != parse_address(fields.raw("consumerAddress")):
            return _json([])
        return _json([reduced(self._shown(request, job))])

    def _asked_for(self, fields: Fields, asker: Asker) -> list[JobRecord]:
        if "jobId" not in fields:
            jobs = self._desk.jobs_of(asker.address)
        else:
            job = self._desk.find(fields.text("jobId"))
            jobs = [job] if job is not None and job.owner == asker.address else []
        name = fields.text("documentId")
        return [job for job in jobs if not name or name in {*job.wish["inputs"], *job.wish["labels"]}]

    def _stop(self, request: Request) -> Response:
        job = self._own_job(request, Operation.STOP)
        self._desk.stop(job)
        return self._once_more(request, job)

    def _delete(self, request: Request) -> Response:
        job = self._own_job(request, Operation.DELETE)
        shown = self._shown(request, job)
        self._desk.delete(job)
        return _json([{**shown, "removed": 1, "statusText": "Job deleted successfully", "results": []}])

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

    def _once_more(self, request: Request, job: JobRecord) -> Response:
        return _json([self._shown(request, self._desk.find(job.id) or job)])

    def _result(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("jobId", "index", "consumerAddress", "nonce")
        asker = self._recognise(request, Operation.RESULT, fields)
        index = fields.whole("index", most=100_000)
        job = self._desk.find(fields.text("jobId"))
        if job is None or not _may_read(job, asker.address):
            raise bad_signature()
        files = self._desk.files(job)
        if index is None or index >= len(files):
            raise BadFields({"index": "The index is not that of a result of this job."})
        self._authentication.use_nonce(asker)
        found = files[index]
        response = send_file(
            self._desk.path(job, index),
            request.environ,
            mimetype="application/octet-stream",
            as_attachment=True,
            download_name=found.filename,
            conditional=True,
            etag=f"{job.id}-{index}",
        )
        response.headers["Access-Control-Expose-Headers"] = "Content-Disposition"
        return response

    def _live_log(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("jobId", "consumerAddress", "nonce")
        asker = self._recognise(request, Operation.LOG, fields)
        job = self._desk.find(fields.text("jobId"))
        if job is None or not _may_read(job, asker.address):
            raise bad_signature()
        self._authentication.use_nonce(asker)
        written = self._desk.live_log(job)
        if written is None:
            return _json({"error": "Job is not running, or its log is not shared."}, 404)
        return Response(written, content_type="application/octet-stream")

    def _shown(self, request: Request, job: JobRecord) -> dict[str, Any]:
        return self._desk.shown(job, base=f"{request.host_url.rstrip('/')}{BASE}")

    def _recognise(self, request: Request, operation: Operation, fields: Fields) -> Asker:
        asker = self._authentication.recognise(operation, fields, request.headers)
        self._pace.take(f"address:{asker.address}")
        return asker

    # --- tokens -----------------------------------------------------------------------------------------------

    def _create_token(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("address", "expiration", "nonce", "signature")
        return _json({"token": self._new_token(fields, "expiration")})

    def _create_newer_token(self, request: Request) -> Response:
        fields = Fields.of(request)
        fields.demand("address", "nonce", "signature")
        return _json({"token": self._new_token(fields, "validUntil")})

    def _new_token(self, fields: Fields, until: str) -> str:
        asker = self._authentication.recognise(Operation.CREATE_TOKEN, fields, {}, by_token=False)
        expires_at = fields.whole(until)
        self._authentication.use_nonce(asker)
        try:
            return self._tokens.create(asker.address, expires_at=expires_at, nonce=asker.nonce)
        except BadToken as refusal:
            raise BadFields({until: str(refusal)}) from refusal

    def _delete_token(self, request: Request) -> Response:
        self._revoke(request)
        return _json({"success": "Token has been deactivated."})

    def _delete_newer_token(self, request: Request) -> Response:
        self._revoke(request)
        return _json({"success": True})

    def _revoke(self, request: Request) -> None:
        fields = Fields.of(request)
        fields.demand("address", "token", "nonce", "signature")
        asker = self._authentication.recognise(Operation.DELETE_TOKEN, fields, {}, by_token=False)
        self._authentication.use_nonce(asker)
        with _token_refusals():
            self._tokens.revoke(fields.text("token"), asker.address)


ENDPOINTS: Mapping[str, tuple[str, str]] = {
    "nonce": ("GET", f"{BASE}/nonce"),
    "computeEnvironments": ("GET", f"{BASE}/computeEnvironments"),
    "computeStart": ("POST", f"{BASE}/compute"),
    "computeStatus": ("GET", f"{BASE}/compute"),
    "computeStop": ("PUT", f"{BASE}/compute"),
    "computeDelete": ("DELETE", f"{BASE}/compute"),
    "computeResult": ("GET", f"{BASE}/computeResult"),
    "createAuthToken": ("GET", f"{BASE}/createAuthToken"),
    "deleteAuthToken": ("DELETE", f"{BASE}/deleteAuthToken"),
    "initializeCompute": ("POST", f"{BASE}/initializeCompute"),
    "fileinfo": ("POST", f"{BASE}/fileinfo"),
    "validateContainer": ("POST", f"{BASE}/validateContainer"),
    "computeStreamableLogs": ("GET", f"{BASE}/computeStreamableLogs"),
    "freeCompute": ("POST", f"{BASE}/freeCompute"),
    "generateAuthToken": ("POST", f"{BASE}/auth/token"),
    "invalidateAuthToken": ("POST", f"{BASE}/auth/token/invalidate"),
}
ROUTES = Map(
    [
        Rule("/", methods=["GET"], endpoint="root"),
        Rule(f"{BASE}/openapi.json", methods=["GET"], endpoint="openapi"),
        Rule("/api/aquarius/assets/ddo/<did>", methods=["GET"], endpoint="document"),
        *(Rule(path, methods=[method], endpoint=name) for name, (method, path) in ENDPOINTS.items()),
    ],
    strict_slashes=False,
)


def _is_about(job: JobRecord, name: str) -> bool:
    return name in {*job.wish["inputs"], *job.wish["labels"]}


def _may_read(job: JobRecord, address: Address) -> bool:
    return address == job.owner or address in job.wish.get("viewers", ())


@contextmanager
def _token_refusals() -> Iterator[None]:
    try:
        yield
    except BadToken as refusal:
        raise Refused("", str(refusal)) from refusal


def _bad_fields(refusal: BadFields) -> Response:
    errors = {name: [text] for name, text in refusal.faults.items()}
    return _json({"errors": errors, "message": "Validation error", "success": False}, 400)


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    text = {404: "Not Found", 405: "Method Not Allowed"}.get(status, error.name)
    return _json({"error": text}, status)


def _json(body: Any, status: int = 200, *, retry_after: float | None = None) -> Response:
    response = Response(json.dumps(body), status, content_type="application/json")
    response.headers["Connection"] = "close"
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(retry_after)))
    return response
