"""The server's JSON for what is in its tables. Owns the shapes and the links; must not know who asks or may ask."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from node_agent.sandbox.server.database import Database, Row

_METHODS = ["GET", "PATCH"]
_ADDRESS = ("address1", "address2", "zipcode", "country")


@dataclass(frozen=True, slots=True)
class Links:
    """Makes links below the API's path."""

    api_path: str

    def path(self, rest: str) -> str:
        """Give a path as callers see it."""
        return f"{self.api_path}/{rest}"

    def one(self, kind: str, number: int | None) -> dict[str, Any] | None:
        """Link to one thing."""
        if number is None:
            return None
        return {"id": number, "link": self.path(f"{kind}/{number}"), "methods": _METHODS}

    def many(self, kind: str, key: str, number: int) -> str:
        """Link to all things that belong to one."""
        return self.path(f"{kind}?{urlencode({key: number})}")


def organization(row: Row, links: Links) -> dict[str, Any]:
    """Show an organization."""
    kinds = ("collaboration", "node", "user", "run")
    return {
        **{name: row[name] for name in ("id", "name", "domain", *_ADDRESS, "public_key")},
        **{f"{kind}s": links.many(kind, "organization_id", row["id"]) for kind in kinds},
        "tasks": links.many("task", "init_org_id", row["id"]),
        "studies": links.many("study", "organization_id", row["id"]),
    }


def collaboration(row: Row, links: Links) -> dict[str, Any]:
    """Show a collaboration."""
    return {
        "id": row["id"],
        "name": row["name"],
        "encrypted": bool(row["encrypted"]),
        "organizations": links.many("organization", "collaboration_id", row["id"]),
        "nodes": links.many("node", "collaboration_id", row["id"]),
        "tasks": links.many("task", "collaboration_id", row["id"]),
        "studies": links.many("study", "collaboration_id", row["id"]),
        "algorithm_stores": links.many("algorithmstore", "collaboration_id", row["id"]),
    }


def node(row: Row, links: Links, database: Database) -> dict[str, Any]:
    """Show a node with what it told about itself."""
    config = database.rows("SELECT key, value FROM node_config WHERE node_id = ? ORDER BY id", row["id"])
    return {
        "id": row["id"],
        "type": "node",
        "name": row["name"],
        "status": row["status"],
        "last_seen": row["last_seen"],
        "ip": row["ip"],
        "organization": links.one("organization", row["organization_id"]),
        "collaboration": links.one("collaboration", row["collaboration_id"]),
        "config": [dict(entry) for entry in config],
    }


def user(row: Row, links: Links) -> dict[str, Any]:
    """Show a user."""
    shown = ("id", "username", "firstname", "lastname", "email", "status", "last_seen")
    return {
        **{name: row[name] for name in shown},
        "type": "user",
        "organization": links.one("organization", row["organization_id"]),
        "roles": links.many("role", "user_id", row["id"]),
        "rules": links.many("rule", "user_id", row["id"]),
    }


def task(row: Row, links: Links) -> dict[str, Any]:
    """Show a task; `complete` is for older clients."""
    shown = ("id", "name", "description", "image", "job_id", "status", "created_at", "finished_at")
    return {
        **{name: row[name] for name in shown},
        "complete": bool(row["complete"]),
        "collaboration": links.one("collaboration", row["collaboration_id"]),
        "init_org": links.one("organization", row["init_org_id"]),
        "init_user": links.one("user", row["init_user_id"]),
        "parent": links.one("task", row["parent_id"]),
        "databases": json.loads(row["databases"]),
        "study": None,
        "algorithm_store": None,
        "children": links.many("task", "parent_id", row["id"]),
        "runs": links.many("run", "task_id", row["id"]),
        "results": links.many("result", "task_id", row["id"]),
    }


def run(row: Row, links: Links, database: Database) -> dict[str, Any]:
    """Show a run, without its result."""
    ports = database.rows("SELECT id, port, label FROM port WHERE run_id = ?", row["id"])
    shown = ("id", "input", "status", "assigned_at", "started_at", "finished_at", "log")
    return {
        **{name: row[name] for name in shown},
        "cleanup_at": None,
        "blob_storage_used": False,
        "organization": links.one("organization", row["organization_id"]),
        "node": {
            "id": row["node_id"],
            "ip": row["node_ip"],
            "status": row["node_status"],
            "name": row["node_name"],
        },
        "ports": [dict(port) for port in ports],
        "results": links.one("result", row["id"]),
        "task": links.one("task", row["task_id"]),
    }


def result(row: Row, links: Links) -> dict[str, Any]:
    """Show the result of a run."""
    return {
        "id": row["id"],
        "result": row["result"],
        "run": links.one("run", row["id"]),
        "task": links.one("task", row["task_id"]),
        "cleanup_at": None,
        "blob_storage_used": False,
    }
