"""The same analyses on three of our nodes and on three of vantage6's own, compared byte by byte: `make same-results`.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.bench.same_results

Owns which analyses are compared and how. Must not know how a node runs them. One server, one set of keys, one set of
files: first our nodes serve the collaboration, then vantage6's.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docker
from rich.console import Console
from rich.table import Table

from tests.bench.failures import NOT_HERE, BenchError
from tests.bench.stage import bridge_address
from tests.lab.agents import agents_for
from tests.lab.client import ClientWorker
from tests.lab.engine import engine
from tests.lab.images import ALGORITHMS, algorithm_image, average_image
from tests.lab.places import say
from tests.lab.registry import Registry, registry
from tests.lab.samples import write_cohorts, write_hospitals
from tests.lab.vantage6 import RealServer
from tests.lab.vantage6_node import PeerNode, command_line, node_image

WITHIN = 300
EVERYONE, FIRST = ("alpha", "beta", "gamma"), ("alpha",)

Sources = Mapping[str, Mapping[str, Path]]
Answers = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Analysis:
    """One task: who is asked for what."""

    image: str
    method: str
    database: str
    organizations: tuple[str, ...] = FIRST
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return what the table calls it."""
        return f"{self.image}: {self.method}"


ANALYSES = (
    Analysis("average", "partial_average", "hospital", EVERYONE, {"column": "weight"}),
    Analysis("average", "central_average", "hospital", FIRST, {"column": "age"}),
    Analysis("cohort", "count_cells", "cohort", EVERYONE, {"row": "arm", "column": "stage"}),
    Analysis("cohort", "cross_table", "cohort", FIRST, {"row": "arm", "column": "stage"}),
    Analysis("cohort", "survival_curve", "cohort", FIRST, {"time": "months", "event": "died"}),
    Analysis(
        "cohort",
        "logistic_regression",
        "cohort",
        FIRST,
        {"outcome": "relapsed", "predictors": ["age", "died"], "rounds": 4},
    ),
)


def main() -> int:
    """Run everything twice and tell; the exit code is 1 if any result differs."""
    with _stage() as (client, server, images, sources):
        ours = _ours(server, images, sources)
        theirs = _theirs(client, server, images, sources)
    _show(ours, theirs)
    return 0 if ours == theirs else 1


@contextmanager
def _stage() -> Iterator[tuple[docker.DockerClient, RealServer, Mapping[str, str], Sources]]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
        node_image(client)
        command_line()
        images = _offered(client, stack.enter_context(registry()))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="same-results-")))
        # The peers sit in containers: they reach the host at the address of the engine's own bridge.
        server = stack.enter_context(RealServer(EVERYONE, host=bridge_address(client)))
        yield client, server, images, _sources(folder)


def _offered(client: docker.DockerClient, offered: Registry) -> dict[str, str]:
    """Put the images into a registry, since both kinds of node pull by default."""
    local = {
        "average": average_image(client),
        "cohort": algorithm_image(client, "cohort", ALGORITHMS / "cohort"),
    }
    return {
        name: offered.push(client, tag, f"same-results/{name}:latest").reference
        for name, tag in local.items()
    }


def _sources(folder: Path) -> Sources:
    hospitals, cohorts = write_hospitals(folder), write_cohorts(folder)
    return {name: {"hospital": hospitals[name], "cohort": cohorts[name]} for name in EVERYONE}


def _ours(server: RealServer, images: Mapping[str, str], sources: Sources) -> Answers:
    allowed = [image.rpartition(":")[0] for image in images.values()]
    settings = {"policy": {"algorithms": allowed}, "images": {"pull": "always"}}
    say("three of our nodes …")
    with agents_for(server, sources, settings):
        return _answers(server, images)


def _theirs(
    client: docker.DockerClient, server: RealServer, images: Mapping[str, str], sources: Sources
) -> Answers:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        peers = [PeerNode(client, server, name, databases=sources[name]) for name in EVERYONE]
        for started in [pool.submit(stack.enter_context, peer) for peer in peers]:
            started.result()
        return _answers(server, images)


def _answers(server: RealServer, images: Mapping[str, str]) -> Answers:
    with ClientWorker(server) as researcher:
        return {
            analysis.title: _answer(server, researcher, analysis, images[analysis.image])
            for analysis in ANALYSES
        }


def _answer(server: RealServer, researcher: ClientWorker, analysis: Analysis, image: str) -> Sequence[str]:
    """Return what the researcher sees of each run, in the order of the organizations."""
    task = researcher.create_task(
        image=image,
        method=analysis.method,
        organizations=[server.organization_ids[name] for name in analysis.organizations],
        arguments=dict(analysis.arguments),
        databases=[{"label": analysis.database}],
    )
    researcher.call("wait_for_results", task_id=task, interval=0.5, within=WITHIN)
    by_run = {
        row["run"]["id"]: row["result"] for row in researcher.call("result.from_task", task_id=task)["data"]
    }
    runs = sorted(researcher.runs(task), key=lambda run: int(run["organization"]["id"]))
    say(f"{analysis.title}: {', '.join(run['status'] for run in runs)}")
    unfinished = [run for run in runs if run["status"] != "completed"]
    if unfinished:
        raise BenchError(f"{analysis.title} is {unfinished[0]['status']}; its log:\n{unfinished[0]['log']}")
    return [by_run[run["id"]] for run in runs]


def _show(ours: Answers, theirs: Answers) -> None:
    table = Table(title="Our nodes beside vantage6's own: what the researcher sees")
    for heading in ("analysis", "runs", "results"):
        table.add_column(heading)
    for title, answers in ours.items():
        verdict = "the same" if answers == theirs[title] else f"differ\n{answers}\n{theirs[title]}"
        table.add_row(title, str(len(answers)), verdict)
    Console().print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NOT_HERE as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        say("interrupted; everything is put away")
        sys.exit(130)
