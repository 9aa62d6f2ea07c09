"""The REST side: which path gives what. Knows nothing of sockets; what others should hear goes to *tell*."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from tests.doubles.fake_server.credentials import Credentials
from tests.doubles.fake_server.refusal import Refusal, crash
from tests.doubles.fake_server.world import COLLABORATION, Node, Run, Task, World

Tell = Callable[[str, object], None]

_ROUTES = Map(
    [
        Rule("/version", endpoint="version", methods=["GET"]),
        Rule("/health", endpoint="health", methods=["GET"]),
        Rule("/token/node", endpoint="login", methods=["POST"]),
        Rule("/token/refresh", endpoint="refresh", methods=["POST"]),
        Rule("/token/container", endpoint="container_token", methods=["POST"]),
        Rule("/node/<int:node_id>", endpoint="node", methods=["GET"]),
        Rule("/organization", endpoint="organizations", methods=["GET"]),
        Rule("/organization/<int:organization_id>", endpoint="organization", methods=["GET"]),
        Rule("/organization/<int:organization_id>", endpoint="change_organization", methods=["PATCH"]),
        Rule("/collaboration/<int:collaboration_id>", endpoint="collaboration", methods=["GET"]),
        Rule("/run", endpoint="runs", methods=["GET"]),
        Rule("/run/<int:run_id>", endpoint="run", methods=["GET"]),
        Rule("/run/<int:run_id>", endpoint="update_run", methods=["PATCH"]),
        Rule("/result", endpoint="results", methods=["GET"]),
        Rule("/result/<int:run_id>", endpoint="result", methods=["GET"]),
        Rule("/task", endpoint="create_task", methods=["POST"]),
        Rule("/task/<int:task_id>", endpoint="task", methods=["GET"]),
        Rule("/task/<int:task_id>/status", endpoint="task_status", methods=["GET"]),
        Rule("/blobstream/status", endpoint="blob_status", methods=["GET"]),
        Rule("/blobstream", endpoint="store_blob", methods=["POST"]),
        Rule("/blobstream/<name>", endpoint="blob", methods=["GET"]),
    ],
)


class Routes:
    """Answers REST calls from the books."""

    def __init__(self, world: World, credentials: Credentials, tell: Tell) -> None:
        self._world = world
        self._credentials = credentials
        self._tell = tell

    def answer(self, request: Request, path: str) -> Response:
        """Answer one call."""
        try:
            endpoint, values = _ROUTES.bind("fake").match(path, request.method)
        except HTTPException as error:
            return Response(error.get_body(), status=error.code, content_type="text/html; charset=utf-8")
        try:
            with self._world.changed:
                found = getattr(self, f"_{endpoint}")(request, **values)
        except Refusal as refusal:
            return _json({"msg": refusal.message}, refusal.status)
        return found if isinstance(found, Response) else _json(found)

    # --- who ---

    def _claims(self, request: Request) -> dict[str, Any]:
        return self._credentials.check(request.headers.get("Authorization"))

    def _caller(self, request: Request) -> Node:
        claims = self._claims(request)
        if claims["client_type"] != "node":
            raise crash()
        node = self._world.nodes.get(claims["sub"])
        if node is None:
            raise Refusal(401, "Node is not recognized")
        return node

    # --- tokens ---

    def _login(self, request: Request) -> object:
        return self._tokens_of(self._world.node_of_key(_body(request).get("api_key")).id)

    def _refresh(self, request: Request) -> object:
        claims = self._credentials.check(request.headers.get("Authorization"), "refresh")
        return self._tokens_of(claims["sub"])

    def _tokens_of(self, node_id: int) -> object:
        paths = {"refresh_url": "/api/token/refresh", "node_url": f"/api/node/{node_id}"}
        return self._credentials.node_tokens(node_id) | paths

    def _container_token(self, request: Request) -> object:
        node, body = self._caller(request), _body(request)
        task = self._world.tasks.get(body.get("task_id", 0))
        if task is None:
            raise Refusal(400, "Parent task does not exist!")
        if task.image != body.get("image"):
            raise Refusal(401, "Image and task do no match")
        if self._world.task_status(task.id) not in {"pending", "initializing", "active"}:
            raise Refusal(400, "Task is already finished!")
        claims = {
            "client_type": "container",
            "node_id": node.id,
            "organization_id": node.organization_id,
            "collaboration_id": COLLABORATION,
            "task_id": task.id,
            "image": task.image,
            "databases": task.databases,
        }
        return {"container_token": self._credentials.container_token(claims)}

    # --- books ---

    def _version(self, _: Request) -> object:
        return {"version": "4.15.2"}

    def _health(self, _: Request) -> object:
        return {"database": True}

    def _blob_status(self, request: Request) -> object:
        self._claims(request)
        return {"blob_store_enabled": self._world.blobs is not None}

    def _blob(self, request: Request, name: str) -> object:
        self._claims(request)
        content = self._world.blob(name)
        # whoever reads it is not told how long it is
        return Response(iter([content]), content_type="application/octet-stream")

    def _store_blob(self, request: Request) -> object:
        self._claims(request)
        content = request.get_data()
        if self._world.uploads_need_a_length and request.content_length is None:
            raise Refusal(500, "Error uploading result!")
        return _json({"uuid": self._world.store_blob(content)}, 201)

    def _node(self, request: Request, node_id: int) -> object:
        self._caller(request)
        node = self._world.nodes.get(node_id)
        if node is None:
            raise Refusal(404, f"Node id={node_id} not found!")
        return {
            "id": node.id,
            "type": "node",
            "name": f"{node.name} - fake Node",
            "ip": None,
            "status": node.status,
            "config": [],
            "organization": _link("organization", node.organization_id),
            "collaboration": _link("collaboration", COLLABORATION),
        }

    def _organizations(self, request: Request) -> object:
        self._claims(request)
        found = [_organization(node) for node in self._world.nodes.values()]
        return _page(request, found)

    def _organization(self, request: Request, organization_id: int) -> object:
        self._claims(request)
        return _organization(self._world.node_of_organization(organization_id))

    def _change_organization(self, request: Request, organization_id: int) -> object:
        node, body = self._caller(request), _body(request)
        if node.organization_id != organization_id:
            raise Refusal(401, "You lack the permission to do that!")
        node.public_key = body["public_key"]
        return _organization(node)

    def _collaboration(self, request: Request, collaboration_id: int) -> object:
        self._claims(request)
        if collaboration_id != COLLABORATION:
            raise Refusal(404, f"Collaboration id={collaboration_id} not found!")
        found = {"id": COLLABORATION, "name": "fake", "organizations": "/api/organization"}
        return found | {"encrypted": self._world.encrypted}

    # --- runs and results ---

    def _runs(self, request: Request) -> object:
        self._claims(request)
        # newest first; `sort` only orders what has equal ids
        runs = sorted(self._chosen(request.args), key=lambda run: -run.id)
        include = request.args.get("include") == "task"
        return _page(request, [self._run_as_json(run, include=include) for run in runs])

    def _chosen(self, wanted: Mapping[str, str]) -> list[Run]:
        task_id, node_id = wanted.get("task_id"), wanted.get("node_id")
        if task_id is not None and int(task_id) not in self._world.tasks:
            raise Refusal(400, f"Task id={task_id} does not exist!")
        if node_id is not None and int(node_id) not in self._world.nodes:
            raise Refusal(400, f"Node id={node_id} does not exist!")
        return [
            run
            for run in self._world.runs.values()
            if (task_id is None or run.task.id == int(task_id))
            and (node_id is None or run.node_id == int(node_id))
            and (wanted.get("state") != "open" or run.finished_at is None)
        ]

    def _run(self, request: Request, run_id: int) -> object:
        self._claims(request)
        include = request.args.get("include") == "task"
        return self._run_as_json(self._world.run(run_id), include=include)

    def _update_run(self, request: Request, run_id: int) -> object:
        node = self._caller(request)
        run = self._world.update_run(run_id, node, _body(request))
        self._tell("status_update", {"run_id": run_id})
        return self._run_as_json(run, include=False)

    def _results(self, request: Request) -> object:
        self._claims(request)
        runs = sorted(self._chosen(request.args), key=lambda run: -run.id)
        return _page(request, [_result(run) for run in runs])

    def _result(self, request: Request, run_id: int) -> object:
        self._claims(request)
        return _result(self._world.run(run_id))

    def _run_as_json(self, run: Run, *, include: bool) -> dict[str, Any]:
        return {
            "id": run.id,
            "input": run.input,
            "status": run.status,
            "started_at": _time(run.started_at),
            "finished_at": _time(run.finished_at),
            "assigned_at": "2026-01-01T00:00:00.000000",
            "cleanup_at": None,
            "log": run.log,
            "blob_storage_used": self._world.blobs is not None,
            "organization": _link("organization", run.organization_id),
            "node": {"id": run.node_id, "ip": None, "status": "online", "name": "fake"},
            "ports": [],
            "results": _link("result", run.id),
            "task": self._task_as_json(run.task) if include else _link("task", run.task.id),
        }

    # --- tasks ---

    def _task(self, request: Request, task_id: int) -> object:
        self._claims(request)
        return self._task_as_json(self._world.task(task_id))

    def _task_status(self, request: Request, task_id: int) -> object:
        if self._claims(request)["client_type"] != "container":
            raise crash()
        self._world.task(task_id)
        return {"status": self._world.task_status(task_id)}

    def _create_task(self, request: Request) -> object:
        claims, body = self._claims(request), _body(request)
        if claims["client_type"] != "container":
            raise crash()
        container = claims["sub"]
        parent = self._world.task(container["task_id"])
        over = self._world.task_status(parent.id) not in {"pending", "initializing", "active"}
        if over or not str(body.get("image")).endswith(container["image"]):
            raise Refusal(401, "Container-token is not valid")
        created = self._world.create_task(
            image=parent.image,
            inputs={o["id"]: o["input"] for o in body.get("organizations", [])},
            databases=body.get("databases") or [],
            parent=parent,
            init_org_id=container["organization_id"],
        )
        self._tell("new_task", {"id": created.task_id, "parent_id": parent.id})
        return _json(self._task_as_json(self._world.task(created.task_id)), 201)

    def _task_as_json(self, task: Task) -> dict[str, Any]:
        return {
            "id": task.id,
            "name": "t",
            "description": "",
            "image": task.image,
            "job_id": task.job_id,
            "status": self._world.task_status(task.id),
            "created_at": "2026-01-01T00:00:00.000000",
            "finished_at": None,
            "collaboration": _link("collaboration", COLLABORATION),
            "init_org": _link("organization", task.init_org_id),
            "init_user": _link("user", 1),
            "parent": None if task.parent_id is None else _link("task", task.parent_id),
            "databases": task.databases,
            "study": None,
            "algorithm_store": None,
            "children": f"/api/task?parent_id={task.id}",
            "runs": f"/api/run?task_id={task.id}",
            "results": f"/api/result?task_id={task.id}",
        }


def _body(request: Request) -> dict[str, Any]:
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        # servers of this kind see an empty body then
        raise Refusal(400, "Request body is incorrect")
    try:
        body = json.loads(request.get_data())
    except ValueError:
        raise Refusal(400, "Request body is incorrect") from None
    if not isinstance(body, dict):
        raise Refusal(400, "Request body is incorrect")
    return body


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content), status=status, content_type="application/json")


def _page(request: Request, elements: list[Any]) -> Response:
    try:
        page, size = int(request.args.get("page", "1")), int(request.args.get("per_page", "10"))
    except ValueError:
        raise crash() from None
    last = math.ceil(len(elements) / size)
    links = _links(request, page, last)
    answer = _json({"data": elements[(page - 1) * size : page * size], "links": links})
    answer.headers["total-count"] = str(len(elements))
    return answer


def _links(request: Request, page: int, last: int) -> dict[str, str]:
    def link(number: int) -> str:
        query = "&".join(f"{k}={v}" for k, v in _without_page(request.args.items()))
        return f"/api{request.path}?{query}&page={number}"

    links = {"first": link(1), "self": link(page)}
    if last:
        links["last"] = link(last)
    if page > 1:
        links["previous"] = link(page - 1)
    if page < last:
        links["next"] = link(page + 1)
    return links


def _without_page(query: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in query if key != "page"]


def _result(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "result": run.result,
        "run": _link("run", run.id),
        "task": _link("task", run.task.id),
        "cleanup_at": None,
        "blob_storage_used": False,
    }


def _organization(node: Node) -> dict[str, Any]:
    return {
        "id": node.organization_id,
        "name": node.name,
        "domain": f"{node.name}.example",
        "country": "",
        "public_key": node.public_key,
        "collaborations": f"/api/collaboration?organization_id={node.organization_id}",
    }


def _link(kind: str, number: int) -> dict[str, Any]:
    return {"id": number, "link": f"/api/{kind}/{number}", "methods": ["GET"]}


def _time(at: datetime | None) -> str | None:
    # naive UTC, as the server writes it
    return None if at is None else at.replace(tzinfo=None).isoformat()
