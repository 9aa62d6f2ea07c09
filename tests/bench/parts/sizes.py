"""Results and inputs from small to large, plain and encrypted: how long they take on their way, and what memory they take.

The time of a result runs from the end of its container until the server has taken the report. Beside it stands a plain
HTTP client that sends the same report, ready in a file, to the same server in another node's name; and, where results
are encrypted, the library that encrypts the file. The time of an input runs from when the server has taken the task until
its container is there; beside it a plain client that asks for the same run and writes the answer to a file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docker

from node_agent.domain.run import State
from tests.bench.figures import spread
from tests.bench.places import Place, encrypted_place, plain_place
from tests.bench.plainly import encrypt, write_noise, write_report
from tests.bench.researcher import Job
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.lab.images import script_image
from tests.lab.places import say

SIZED = """\
import base64, os, re
path = lambda name: base64.b32decode(os.environ[name].replace("!", "=")).decode()
with open(path("INPUT_FILE"), "rb") as given:
    size = int(re.search(rb'"method": *"size-(\\d+)"', given.read(200))[1])
block = os.urandom(1 << 20)
with open(path("OUTPUT_FILE"), "wb") as output:
    for start in range(0, size, len(block)):
        output.write(block[:size - start])
"""


def sized_image(client: docker.DockerClient) -> str:
    """Return the image whose result has as many bytes as its method says."""
    return script_image(client, "sized", SIZED)


def measure_results(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Measure results of each size."""
    return _both(lambda place: _each(scale.results, place, _result), stage)


def measure_inputs(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Measure inputs of each size."""
    return _both(lambda place: _each(scale.inputs, place, _input), stage)


def _both(measured: Callable[[Place], list[dict[str, Any]]], stage: Stage) -> dict[str, Any]:
    return {"plain": measured(plain_place(stage)), "encrypted": measured(encrypted_place(stage))}


def _each(
    sizes: Mapping[int, int], place: Place, measured: Callable[[Place, int], dict[str, float]]
) -> list[dict[str, Any]]:
    image = place.stage.offered(sized_image, "sized")
    for _ in range(2):
        place.ended_run(Job(image, "size-1000"))
    rows = []
    for size, often in sizes.items():
        rounds = [measured(place, size) for _ in range(often)]
        rows.append({"size": size, **{name: spread([one[name] for one in rounds]) for name in rounds[0]}})
        say(f"{size / 1e6:.3f} MB: " + ", ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items()))
    return rows


def _result(place: Place, size: int) -> dict[str, float]:
    job = Job(place.stage.offered(sized_image, "sized"), f"size-{size}")
    run = place.ended_run(job)
    finished, reported = run.states[State.FINISHED.name], run.states[State.REPORTED.name]
    return {
        "seconds": reported - run.ended,
        "taking_over": finished - run.ended,
        "report": reported - finished,
        "memory": run.memory,
        **_sent_plainly(place, size),
    }


def _sent_plainly(place: Place, size: int) -> dict[str, float]:
    with _scratch(place) as folder:
        content = write_noise(size, folder / "content")
        encrypting = encrypt(content, folder / "sealed") if place.is_encrypted else 0.0
        report = write_report(content, folder / "report")
        task = place.researcher.post("plain", Job("none"))
        (run_id,) = place.researcher.ends([task])
        return {"plain_send": place.empty.send(run_id, report), "plain_encrypt": encrypting}


def _input(place: Place, size: int) -> dict[str, float]:
    job = Job(place.stage.offered(sized_image, "sized"), "size-2", {"padding": "x" * size})
    run = place.ended_run(job)
    return {
        "seconds": run.created - run.answered,
        "memory": run.memory,
        "plain_fetch": _fetched_plainly(place, job),
    }


def _fetched_plainly(place: Place, job: Job) -> float:
    with _scratch(place) as folder:
        task = place.researcher.post("plain", job)
        took = place.empty.fetch(task, folder / "answer")
        (run_id,) = place.researcher.ends([task])
        place.empty.send(run_id, write_report(write_noise(10, folder / "content"), folder / "report"))
        return took


@contextmanager
def _scratch(place: Place) -> Iterator[Path]:
    with TemporaryDirectory(dir=place.folder) as name:
        yield Path(name)
