"""The objects the compute API answers with: jobs and environments, with the fields of both dialects.

Knows what clients expect of each field, and nothing of where the facts come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node_agent.compute.ledger import JobRecord
from node_agent.compute.results import ResultFile
from node_agent.compute.signatures import Address, shown_address
from node_agent.domain.jobstatus import DELETED, WORDS

GIB = 2**30
_UNSIGNED = (
    "owner",
    "jobId",
    "documentId",
    "dateCreated",
    "dateFinished",
    "status",
    "statusText",
    "stopreq",
    "removed",
    "environment",
)
"""What anybody sees who knows a job's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A profile jobs run in: what one job gets, and how many may run."""

    id: str
    description: str = ""
    cpus: float
    memory: int
    """Bytes."""
    disk: int
    """Bytes of output and temporary files."""
    longest: float
    """Seconds a job may run."""
    max_jobs: int
    keep_results: float
    """Seconds results are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What goes on in an environment now."""

    running: int
    queued: int


def job_object(
    job: JobRecord, *, status: int, files: Sequence[ResultFile], started_at: float | None, base: str
) -> dict[str, Any]:
    """Show a job to its owner."""
    ending = job.ending or {}
    number = int(ending.get("status", status))
    wish = job.wish
    outputs = [entry for entry in files if entry.type == "output"]
    logs = [entry for entry in files if entry.type != "output"]
    return {
        "owner": shown_address(Address(job.owner)),
        "jobId": job.id,
        "documentId": next(iter(wish.get("inputs", [])), None),
        "agreementId": next(iter(wish.get("orders", [])), "") or job.id,
        "dateCreated": str(int(job.created_at)),
        "dateFinished": None if job.finished_at is None else str(int(job.finished_at)),
        "status": number,
        "statusText": DELETED if job.removed else str(ending.get("text") or WORDS[number]),
        "algorithmLogUrl": _link(base, job, logs[0]) if logs else "",
        "resultsUrls": [_link(base, job, entry) for entry in outputs],
        "resultsDid": "",
        "results": [_result(entry) for entry in files],
        "algoDID": wish.get("algorithm") or "raw",
        "inputDID": list(wish.get("inputs", [])),
        "stopreq": int(ending.get("stop_request", 1 if job.stop_asked else 0)),
        "removed": int(job.removed),
        "terminationDetails": {
            "exitCode": ending.get("exit_code"),
            "OOMKilled": bool(ending.get("out_of_memory")),
        },
        "environment": wish.get("environment"),
        "maxJobDuration": wish.get("longest"),
        "metadata": wish.get("metadata") or {},
        "algoStartTimestamp": None if started_at is None else str(int(started_at)),
        "reason": str(ending.get("reason") or ""),
    }


def reduced(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a job what only its owner may see."""
    return {name: shown[name] for name in _UNSIGNED}


def environment_object(
    environment: Environment, load: Load, *, own_address: Address, now: float
) -> dict[str, Any]:
    """Show an environment with the fields of both dialects."""
    longest, kept = int(environment.longest), int(environment.keep_results)
    ram, disk = environment.memory / GIB, environment.disk / GIB
    own = shown_address(own_address)
    resources = _resources(environment.cpus, ram, disk)
    return {
        "id": environment.id,
        "desc": environment.description,
        "description": environment.description,
        "cpuNumber": environment.cpus,
        "nCPU": environment.cpus,
        "cpuType": "",
        "gpuNumber": 0,
        "nGPU": 0,
        "gpuType": "",
        "ramGB": round(ram, 2),
        "diskGB": round(disk, 2),
        "priceMin": 0,
        "feeToken": "",
        "currentJobs": load.running,
        "maxJobs": environment.max_jobs,
        "consumerAddress": own,
        "storageExpiry": kept,
        "minJobDuration": 0,
        "maxJobDuration": longest,
        "lastSeen": str(int(now)),
        "platform": {"architecture": "x86_64", "os": "linux"},
        "runningJobs": load.running,
        "runningfreeJobs": load.running,
        "queuedJobs": load.queued,
        "queuedFreeJobs": load.queued,
        "enableNetwork": False,
        "access": {"addresses": [], "accessLists": []},
        "resources": resources,
        "fees": {},
        "free": {
            "maxJobDuration": longest,
            "minJobDuration": 0,
            "maxJobs": environment.max_jobs,
            "storageExpiry": kept,
            "resources": resources,
            "access": {"addresses": [], "accessLists": []},
            "allowImageBuild": False,
        },
    }


def _resources(cpus: float, ram: float, disk: float) -> list[dict[str, Any]]:
    return [
        {"id": name, "type": name, "total": amount, "min": 0, "max": amount, "inUse": 0}
        for name, amount in (("cpu", cpus), ("ram", round(ram, 2)), ("disk", round(disk, 2)))
    ]


def _result(entry: ResultFile) -> dict[str, Any]:
    return {
        "filename": entry.filename,
        "filesize": entry.filesize,
        "type": entry.type,
        "index": entry.index,
    }


def _link(base: str, job: JobRecord, entry: ResultFile) -> str:
    """Point to a file without any right in the link: fetching it needs a signature of its own."""
    return f"{base}/computeResult?jobId={job.id}&index={entry.index}"
