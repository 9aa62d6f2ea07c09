"""The objects the compute API answers with: jobs and environments, with the fields of both dialects.

Knows what clients expect of each field, and nothing of where the facts come from.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from node_agent.compute.ledger import JobRecord
from node_agent.compute.results import ResultFile
from node_agent.compute.signatures import Address, shown_address
from node_agent.domain.jobstatus import DELETED, WORDS

GIB = 2**30
RESULTS_EXPIRED = "The results were deleted: this node does not keep them for longer."
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
    kept = () if job.removed or job.results_gone else files
    outputs = [entry for entry in kept if entry.type == "output"]
    logs = [entry for entry in kept if entry.type != "output"]
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
        "results": [asdict(entry) for entry in kept],
        "algoDID": wish.get("algorithm") or "raw",
        "inputDID": list(wish.get("inputs", [])),
        "stopreq": int(ending.get("stop_request", 1 if job.stop_asked else 0)),
        "removed": int(job.removed or job.results_gone),
        "terminationDetails": {
            "exitCode": ending.get("exit_code"),
            "OOMKilled": bool(ending.get("out_of_memory")),
        },
        "environment": wish.get("environment"),
        "maxJobDuration": wish.get("longest"),
        "queueMaxWaitTime": wish.get("queue_patience"),
        "resources": [
            {"id": name, "amount": amount} for name, amount in _given(wish.get("limits", {})).items()
        ],
        "metadata": wish.get("metadata") or {},
        "algoStartTimestamp": None if started_at is None else str(int(started_at)),
        "reason": _reason(job),
    }


def _reason(job: JobRecord) -> str:
    reason = str((job.ending or {}).get("reason") or "")
    expired = RESULTS_EXPIRED if job.results_gone and not job.removed else ""
    return " ".join(filter(None, (reason, expired)))


def reduced(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a job what only its owner may see."""
    return {name: shown[name] for name in _UNSIGNED}


def environment_object(
    environment: Environment, load: Load, *, own_address: Address, now: float
) -> dict[str, Any]:
    """Show an environment with the fields of both dialects."""
    longest, kept = int(environment.longest), int(environment.keep_results)
    given = given_in(environment)
    own = shown_address(own_address)
    resources = _resources(given, environment.max_jobs, load.running)
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
        "ramGB": given["ram"],
        "diskGB": given["disk"],
        "priceMin": 0,
        "feeToken": "",
        "currentJobs": load.running,
        "maxJobs": environment.max_jobs,
        "consumerAddress": own,
        "storageExpiry": kept,
        "minJobDuration": 0,
        "maxJobDuration": longest,
        "lastSeen": str(int(now)),
        "platform": {"architecture": platform.machine(), "os": platform.system().lower()},
        "runningJobs": load.running,
        "runningfreeJobs": load.running,
        "queuedJobs": load.queued,
        "queuedFreeJobs": load.queued,
        **_longest_waits(load, longest),
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


def given_in(environment: Environment) -> dict[str, float]:
    """Say what one job gets: processors, and gibibytes of memory and disk."""
    return _given({"cpus": environment.cpus, "memory": environment.memory, "disk": environment.disk})


def _given(limits: Mapping[str, Any]) -> dict[str, float]:
    sizes = {"ram": limits.get("memory"), "disk": limits.get("disk")}
    shown = {name: round(size / GIB, 2) for name, size in sizes.items() if size is not None}
    return {"cpu": limits["cpus"], **shown} if "cpus" in limits else shown


def _resources(given: Mapping[str, float], places: int, running: int) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "type": name,
            "total": round(amount * places, 2),
            "min": 0,
            "max": amount,
            "inUse": round(amount * running, 2),
        }
        for name, amount in given.items()
    ]


def _longest_waits(load: Load, longest: int) -> dict[str, int]:
    """Say how long what is here may take at most, one after the other."""
    queued, running = load.queued * longest, longest if load.running else 0
    return {
        "queMaxWaitTime": queued,
        "queMaxWaitTimeFree": queued,
        "runMaxWaitTime": running,
        "runMaxWaitTimeFree": running,
    }


def _link(base: str, job: JobRecord, entry: ResultFile) -> str:
    """Point to a file without any right in the link: fetching it needs a signature of its own."""
    return f"{base}/computeResult?jobId={job.id}&index={entry.index}"
