"""A consumer of the compute API: a key pair, plain HTTP, and a memory of everything it was shown.

Owns what is signed and sent, and holds every answer against what was shown of the same job before: numbers never fall,
and the end is written once. Must not know agents, containers, or what a job computes.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.doubles.wallet import Wallet

SERVICES = "/api/services"
CALL_SECONDS = 60
END_SECONDS = 90
POLL_SECONDS = 0.03
ENDS = frozenset({2, 31, 32, 41, 42, 70})
"""The numbers of jobs that are over."""
ENTRYPOINT = "python3 -S $ALGO"

Job = Mapping[str, Any]


class Refused(Exception):
    """The node answers something else than what was asked for."""

    def __init__(self, answer: requests.Response) -> None:
        super().__init__(f"{answer.status_code}: {answer.text[:2000]}")
        self.status = answer.status_code
        self.body = answer.json() if "json" in answer.headers.get("Content-Type", "") else {}

    @property
    def is_about_the_nonce(self) -> bool:
        """Tell whether another request of the same address was quicker."""
        return "nonce" in (self.body.get("errors") or {})


@dataclass(frozen=True, slots=True)
class Container:
    """An image as consumers name one."""

    image: str
    digest: str


def raw_code(container: Container, code: str, *, entrypoint: str = ENTRYPOINT) -> dict[str, Any]:
    """Describe an algorithm that comes with its job."""
    section = {"entrypoint": entrypoint, "image": container.image, "checksum": container.digest}
    return {"meta": {"rawcode": code, "language": "python", "version": "1", "container": section}}


def catalogued(did: str) -> dict[str, Any]:
    """Name an algorithm of the node's catalogue."""
    return {"documentId": did, "serviceId": "0", "transferTxId": "order"}


@dataclass(slots=True)
class Memory:
    """What was shown of every job, and what was wrong with it."""

    numbers: dict[str, list[int]] = field(default_factory=dict)
    """The different numbers of each job, in the order they were seen."""
    ends: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Last number and moment of each job that is over."""
    faults: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self) -> tuple[dict[str, int], dict[str, tuple[int, str]]]:
        """Say what is known before something is asked: no answer to it may fall behind that."""
        with self._lock:
            return {job: seen[-1] for job, seen in self.numbers.items()}, dict(self.ends)

    def note(self, job: Job, before: tuple[dict[str, int], dict[str, tuple[int, str]]]) -> None:
        """Take in what was shown of a job."""
        last, ends = before
        name, number, finished = job["jobId"], job["status"], job["dateFinished"]
        with self._lock:
            if number < last.get(name, 0):
                self.faults.append(f"{name} fell from {last[name]} to {number}")
            if (number in ENDS) != (finished is not None):
                self.faults.append(f"{name} is {number} and finished {finished}")
            if name in ends and ends[name] != (number, finished):
                self.faults.append(f"{name} ended {ends[name]} and then {(number, finished)}")
            if finished is not None:
                self.ends[name] = (number, finished)
            seen = self.numbers.setdefault(name, [])
            if not seen or seen[-1] < number:
                seen.append(number)


class Consumer:
    """One address at one node."""

    def __init__(self, url: str, *, seed: int = 0x11) -> None:
        self._url = url
        self._wallet = Wallet(seed)
        self._lock = threading.Lock()
        self._nonce: int | None = None
        self.memory = Memory()

    @property
    def address(self) -> str:
        """Give the address as wallets show it."""
        return self._wallet.shown

    # --- what needs no signature ------------------------------------------------------------------------------

    def environments(self) -> dict[str, Job]:
        """Read the environments, by id."""
        listed = self._asked("GET", "computeEnvironments", {}).json()
        return {environment["id"]: environment for environment in listed}

    def last_nonce(self) -> int:
        """Ask for the last nonce of this address."""
        return int(self._asked("GET", "nonce", {"userAddress": self.address}).json()["nonce"])

    def glance(self, job: Job) -> Job:
        """See of a job what anybody sees who knows its number."""
        before = self.memory.known()
        fields = {"consumerAddress": self.address, "jobId": job["jobId"]}
        (shown,) = self._asked("GET", "compute", fields).json()
        self.memory.note(shown, before)
        return dict(shown)

    # --- jobs -------------------------------------------------------------------------------------------------

    def start(
        self,
        data_sets: Sequence[str],
        algorithm: Mapping[str, Any],
        *,
        environment: str = "",
        custom: Mapping[str, Any] | None = None,
        order: str = "order",
        **more: Any,
    ) -> Job:
        """Start a job. Raises Refused."""
        named = [{"documentId": did, "serviceId": "0", "transferTxId": order} for did in data_sets]
        fields: dict[str, Any] = {
            "dataset": named[0],
            "additionalDatasets": named[1:],
            "algorithm": {**algorithm, **({} if custom is None else {"algocustomdata": custom})},
            **({"environment": environment} if environment else {}),
            **more,
        }
        (job,) = self._shown("POST", fields, named[0]["documentId"])
        return job

    def look(self, job: Job) -> Job:
        """Read how a job is, as its owner."""
        (shown,) = self._shown("GET", *_of_job(job))
        return shown

    def jobs(self) -> list[Job]:
        """List the jobs of this address, newest first."""
        return self._shown("GET", {}, "")

    def stop(self, job: Job) -> Job:
        """Ask for a job to be stopped."""
        (shown,) = self._shown("PUT", *_of_job(job))
        return shown

    def delete(self, job: Job) -> Job:
        """Ask for a job and all it left to be removed; what is shown then is the last word on it."""
        (shown,) = self.signed("DELETE", "compute", *_of_job(job)).json()
        return dict(shown)

    def result(self, job: Job, index: int, *, span: str | None = None) -> requests.Response:
        """Fetch a file a job left, or the span of it that a Range header names."""
        job_id = job["jobId"]
        headers = {} if span is None else {"Range": span}
        return self.signed(
            "GET", "computeResult", {"jobId": job_id, "index": str(index)}, f"{job_id}{index}", headers
        )

    def outputs(self, job: Job) -> dict[str, bytes]:
        """Fetch everything a job left, by file name."""
        return {entry["filename"]: self.result(job, entry["index"]).content for entry in job["results"]}

    def reached(self, job: Job, number: int, *, within: float = END_SECONDS) -> Job:
        """Wait until a job is as far as this number."""
        deadline = time.monotonic() + within
        while (shown := self.glance(job))["status"] < number:
            assert shown["dateFinished"] is None, shown
            assert time.monotonic() < deadline, f"{number} not within {within} s: {shown}"
            time.sleep(POLL_SECONDS)
        return shown

    def ended(self, job: Job, *, within: float = END_SECONDS) -> Job:
        """Wait until a job is over and show it as its owner sees it."""
        deadline = time.monotonic() + within
        while (shown := self.glance(job))["dateFinished"] is None:
            assert time.monotonic() < deadline, f"not over within {within} s: {shown}"
            time.sleep(POLL_SECONDS)
        return self.look(job)

    # --- calls ------------------------------------------------------------------------------------------------

    def signed(
        self,
        method: str,
        route: str,
        fields: Mapping[str, Any],
        text: str,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request whose signature covers the address, *text* and a fresh nonce. Raises Refused."""
        nonce = self._next_nonce()
        proven = {
            **fields,
            "consumerAddress": self.address,
            "nonce": str(nonce),
            "signature": self._wallet.sign(f"{self.address}{text}{nonce}"),
        }
        return self._asked(method, route, proven, headers)

    def _next_nonce(self) -> int:
        with self._lock:
            if self._nonce is None:
                self._nonce = self.last_nonce()
            self._nonce += 1
            return self._nonce

    def _shown(self, method: str, fields: Mapping[str, Any], text: str) -> list[Job]:
        before = self.memory.known()
        shown = self.signed(method, "compute", fields, text).json()
        for job in shown:
            self.memory.note(job, before)
        return [dict(job) for job in shown]

    def _asked(
        self,
        method: str,
        route: str,
        fields: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        kind = "json" if method == "POST" else "params"
        answer = requests.request(
            method,
            f"{self._url}{SERVICES}/{route}",
            **{kind: fields},
            headers=headers,
            timeout=CALL_SECONDS,
        )
        if not answer.ok:
            raise Refused(answer)
        return answer


def _of_job(job: Job) -> tuple[dict[str, Any], str]:
    fields = {"jobId": job["jobId"], "documentId": job["documentId"]}
    return fields, "".join(fields.values())
