"""Algorithms that call the server through the proxy, beside containers that call it directly: one, and many at once.

The server is the embedded one, since the real one takes longer for an answer than everything that is measured here. All
containers call in the same seconds: first at a steady pace, one after the other, for the time that a call takes; then as
fast as they can, for how many calls pass in a second. A call opens a connection of its own, as the algorithm tools' client
does.
"""

import contextlib
import json
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import requests

from tests.bench.bare import OnBridge
from tests.bench.failures import BenchError
from tests.bench.figures import p95, spread
from tests.bench.scale import Scale
from tests.bench.stage import Stage, agent_for
from tests.lab.images import script_image
from tests.lab.places import say
from tests.lab.sandbox import SandboxLab

CALLER = """\
import base64, http.client, json, os, random, time
read = lambda name: base64.b32decode(os.environ[name].replace("!", "=")).decode()
with open(read("INPUT_FILE")) as given:
    asked = json.load(given)["kwargs"]
with open(read("TOKEN_FILE")) as given:
    headers = {"Authorization": "Bearer " + given.read().strip()}
host, port = read("HOST").partition("//")[2], int(read("PORT"))
path = read("API_PATH") + asked["path"]
def call():
    began = time.monotonic()
    line = http.client.HTTPConnection(host, port, timeout=60)
    line.request("GET", path, headers=headers)
    answer = line.getresponse()
    answer.read()
    line.close()
    if answer.status != 200:
        raise SystemExit(str(answer.status))
    return time.monotonic() - began
late = time.time() - asked["begin"]
time.sleep(max(0, -late) + random.uniform(0, asked["pause"]))
paced = []
while time.time() < asked["begin"] + asked["seconds"]:
    paced.append(call())
    time.sleep(max(0, asked["pause"] - paced[-1]))
time.sleep(max(0, asked["begin"] + asked["seconds"] + 1 - time.time()))
count = 0
while time.time() < asked["begin"] + 2 * asked["seconds"] + 1:
    call()
    count += 1
with open(read("OUTPUT_FILE"), "w") as output:
    json.dump({"late": max(0, late), "paced": paced, "count": count}, output)
"""
PAUSE_SECONDS = 0.25
MOST_PACED = 40
"""Calls per second of all containers at the steady pace: what the embedded server answers without anybody waiting."""
BEGIN_SECONDS = 2.0
PER_CONTAINER_SECONDS = 0.4
WITHIN_SECONDS = 180
MEMORY = "64MiB"


def caller_image(client: docker.DockerClient) -> str:
    """Return the image of the algorithm that calls."""
    return script_image(client, "caller", CALLER)


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Let so many containers call at once, through the proxy and directly."""
    image = caller_image(stage.client)
    settings = {
        "limits": {"concurrent_runs": max(scale.callers), "memory": MEMORY, "cpus": 1},
        "images": {"pull": "missing"},
    }
    rows = []
    with (
        SandboxLab(("alpha",), host=stage.bridge) as lab,
        agent_for(lab, "alpha", settings),
        contextlib.closing(_Researcher(lab)) as researcher,
    ):
        for count in scale.callers:
            say(f"{count} containers call the server, directly and through the proxy …")
            given = as_input(_asked(lab, count, scale.calling))
            direct = _directly(OnBridge(stage.client, image), lab, researcher.token, given, count)
            proxied = researcher.run(image, _asked(lab, count, scale.calling), count)
            rows.append(
                {
                    "containers": count,
                    "pause": _pause(count),
                    "direct": _summary(direct, scale),
                    "proxy": _summary(proxied, scale),
                }
            )
    return {"rows": rows}


def _pause(count: int) -> float:
    """Return the seconds between two calls of one container: many call more seldom, or they would wait for each other."""
    return max(PAUSE_SECONDS, count / MOST_PACED)


def _asked(lab: SandboxLab, count: int, seconds: float) -> Mapping[str, Any]:
    return {
        "path": f"/organization/{lab.organization_ids['alpha']}",
        "begin": time.time() + BEGIN_SECONDS + count * PER_CONTAINER_SECONDS,
        "seconds": seconds,
        "pause": _pause(count),
    }


def _summary(said: Sequence[Mapping[str, Any]], scale: Scale) -> dict[str, Any]:
    late = sum(each["late"] > 0 for each in said)
    if late:
        say(f"{late} of {len(said)} containers began to call after the others")
    times = [one for each in said for one in each["paced"]]
    found = spread(times)
    del found["samples"]
    return {
        **found,
        "p95": p95(times),
        "calls": len(times),
        "per_second": sum(each["count"] for each in said) / scale.calling,
        "late": late,
    }


class _Researcher:
    """Sends tasks to the embedded server."""

    def __init__(self, lab: SandboxLab) -> None:
        self._lab = lab
        self._session = requests.Session()
        login = {"username": "alpha", "password": lab.passwords["alpha"]}
        self.token = self._asked("POST", "token/user", json=login)["access_token"]
        self._session.headers["Authorization"] = f"Bearer {self.token}"

    def close(self) -> None:
        self._session.close()

    def run(self, image: str, asked: Mapping[str, Any], count: int) -> list[Any]:
        """Run the algorithm so many times at once, and return what each said."""
        tasks = [self._post(image, asked) for _ in range(count)]
        deadline = time.monotonic() + WITHIN_SECONDS
        while len(given := self._results(tasks)) < count:
            if time.monotonic() > deadline:
                raise BenchError(f"{len(given)} of {count} callers have a result after {WITHIN_SECONDS} s")
            # nobody is to be disturbed while the callers call
            time.sleep(max(1.0, asked["begin"] + 2 * asked["seconds"] + 1 - time.time()))
        return given

    def _post(self, image: str, asked: Mapping[str, Any]) -> int:
        body = {
            "image": image,
            "name": "call",
            "collaboration_id": self._lab.collaboration_id,
            "organizations": [
                {"id": self._lab.organization_ids["alpha"], "input": b64encode(as_input(asked)).decode()}
            ],
            "databases": [],
        }
        return int(self._asked("POST", "task", json=body)["id"])

    def _results(self, tasks: Sequence[int]) -> list[Any]:
        """Return what the ended runs gave; those that failed end the bench."""
        given = []
        for task in tasks:
            (run,) = self._asked("GET", f"run?task_id={task}")["data"]
            if run["finished_at"] and run["status"] != "completed":
                raise BenchError(f"a caller is {run['status']}: {run['log']}")
            if run["finished_at"]:
                (result,) = self._asked("GET", f"result?task_id={task}")["data"]
                given.append(json.loads(b64decode(result["result"])))
        return given

    def _asked(self, method: str, path: str, **content: Any) -> Any:
        answer = self._session.request(method, f"{self._lab.url}/{path}", timeout=60, **content)
        answer.raise_for_status()
        return answer.json()


def _directly(containers: OnBridge, lab: SandboxLab, token: str, given: bytes, count: int) -> list[Any]:
    """Run the same containers in the engine's own network, with the researcher's own token."""
    root, _, port = lab.root.rpartition(":")
    way = {"HOST": root, "PORT": port, "API_PATH": "/api"}

    def call(_: int) -> Any:
        return json.loads(containers.run(given, token=token, environment=way, databases={}))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def as_input(asked: Mapping[str, Any]) -> bytes:
    """Write the input as a container reads it."""
    return json.dumps({"method": "call", "kwargs": dict(asked)}).encode()
