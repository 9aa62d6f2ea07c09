"""The main job, end to end: three hospitals, three agents, one federated average, checked against pandas.

    python -m tests.lab.demo

Starts a coordinating server, an agent for each of three organizations with a CSV file of its own, and a researcher's
client; sends `central_average`; shows what happens while it happens; compares the answer with the same average computed
directly with pandas over all three files. Ends with 0 only if they agree, and takes everything down again in any case.
"""

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tests.lab.agents import AgentError, AgentProcess, agents_for
from tests.lab.client import ClientError, ClientWorker
from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, average_image
from tests.lab.samples import write_hospitals
from tests.lab.vantage6 import RealServer, ServerError
from tests.lab.venvs import VenvError

COLUMN = "age"
TASK_SECONDS = 180
REFRESH_SECONDS = 0.2
TOLERANCE = 1e-9

console = Console()


@dataclass(frozen=True)
class Answer:
    """What the researcher got, and what pandas says to the same question."""

    federated: dict[str, Any]
    direct: float
    seconds: float

    @property
    def agree(self) -> bool:
        """Tell whether both averages are the same."""
        return math.isclose(self.federated["average"], self.direct, rel_tol=TOLERANCE)


def main() -> int:
    """Run the demo and return its exit code."""
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="node-agent-demo-")))
            files = write_hospitals(folder)
            cast = _start(stack, files)
            answer = _ask(cast, files)
            _show_answer(cast.server, answer)
            _show_next_steps()
            return 0 if answer.agree else 1
    except KeyboardInterrupt:
        console.print("\nStopped; everything of the demo is taken down again.")
        return 130
    except (AgentError, ClientError, EngineError, ImageError, ServerError, VenvError) as error:
        console.print(f"[red]The demo failed:[/red] {error}")
        return 1


# --- the cast -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cast:
    """Everybody in the demo, and the algorithm."""

    image: str
    server: RealServer
    client: ClientWorker
    agents: Mapping[str, AgentProcess]


def _start(stack: ExitStack, files: Mapping[str, Path]) -> Cast:
    with _stage("Docker engine and the demo algorithm's image"):
        image = average_image(stack.enter_context(engine()).client())
    with _stage("vantage6 server 4.15.2"):
        server = stack.enter_context(RealServer(tuple(files)))
    with _stage("three node agents and the researcher's client"), ThreadPoolExecutor() as pool:
        # The client takes seconds to import; the agents use the time.
        client: Future[ClientWorker] = pool.submit(lambda: stack.enter_context(ClientWorker(server)))
        databases = {name: {"default": path} for name, path in files.items()}
        agents = stack.enter_context(agents_for(server, databases))
        return Cast(image, server, client.result(), agents)


@contextmanager
def _stage(what: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(f"{what} …"):
        yield
    console.print(f"[green]✓[/green] {what} [dim]({time.monotonic() - started:.1f} s)[/dim]")


# --- the question ---------------------------------------------------------------------------------------------


def _ask(cast: Cast, files: Mapping[str, Path]) -> Answer:
    asking = cast.server.organizations[0]
    console.print(f"\nThe researcher of {asking} asks: what is the average {COLUMN} over all three?")
    started = time.monotonic()
    task_id = cast.client.create_task(
        image=cast.image,
        method="central_average",
        arguments={"column": COLUMN},
        organizations=[cast.server.organization_ids[asking]],
    )
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cast.client.results, task_id, within=TASK_SECONDS)
        try:
            _watch(waiting, cast.agents)
        except KeyboardInterrupt:
            cast.client.hang_up()  # else leaving the pool would wait for the whole task
            raise
        results = waiting.result()
    seconds = time.monotonic() - started
    if not results or results[0] is None:
        raise ClientError("the task has no result; its run says:\n" + _log_of_task(cast.client, task_id))
    direct = pd.concat(pd.read_csv(path) for path in files.values())[COLUMN].mean()
    return Answer(results[0], float(direct), seconds)


def _log_of_task(client: ClientWorker, task_id: int) -> str:
    return "\n".join(f"{run['status']}: {run['log']}" for run in client.runs(task_id))


def _watch(waiting: "Future[list[Any]]", agents: Mapping[str, AgentProcess]) -> None:
    with Live(console=console, refresh_per_second=1 / REFRESH_SECONDS, transient=False) as live:
        while not waiting.done():
            live.update(_view(agents))
            time.sleep(REFRESH_SECONDS)
        live.update(_view(agents))


def _view(agents: Mapping[str, AgentProcess]) -> Group:
    table = Table(box=None, pad_edge=False)
    for column in ("node", "run", "what", "state", "code", "now"):
        table.add_column(column)
    for organization, agent in agents.items():
        runs = _runs_of(agent)
        if not runs:
            table.add_row(organization, "", "", "online", "", "waiting for work")
        for run_id, run in runs.items():
            table.add_row(organization, str(run_id), run.what, run.state, str(run.code), run.now)
    return Group(Text(), table)


@dataclass
class _RunView:
    what: str
    state: str = "received"
    code: int = 1
    now: str = "waits for a slot"


_NOW = {
    "admitted": "getting the image",
    "pulled": "creating the container",
    "created": "starting the container",
    "running": "container is working",
    "captured": "reading the result",
    "finished": "reporting",
    "reported": "cleaning up",
    "removed": "done, nothing left behind",
}


def _runs_of(agent: AgentProcess) -> dict[int, _RunView]:
    """Read from the agent's log how far each run is."""
    runs: dict[int, _RunView] = {}
    for line in agent.log_lines():
        match line.get("event"):
            case "run_received":
                runs[line["run_id"]] = _RunView("partial" if line.get("parent_id") else "central")
            case "run_advanced":
                run = runs[line["run_id"]]
                run.state, run.code = line["to"], line["status_code"]
                run.now = _NOW.get(run.state, "")
            case "slot_lent_to_subtasks":
                runs[line["run_id"]].now = "waiting for its subtasks"
            case "image_pull_progress":
                runs[line["run_id"]].now = f"pulling: {line['received']:,} of {line['of']:,} bytes"
    return runs


# --- the answer -----------------------------------------------------------------------------------------------


def _show_answer(server: RealServer, answer: Answer) -> None:
    names = {number: name for name, number in server.organization_ids.items()}
    table = Table(title=f"\nAverage {COLUMN}", title_justify="left")
    table.add_column("part")
    for column in ("sum", "count", "average"):
        table.add_column(column, justify="right")
    for part in answer.federated["parts"]:
        average = part["sum"] / part["count"]
        name = names[part["organization_id"]]
        table.add_row(name, f"{part['sum']:,.0f}", f"{part['count']}", f"{average:.4f}")
    table.add_section()
    table.add_row("federated", "", str(answer.federated["count"]), f"{answer.federated['average']:.10f}")
    table.add_row("pandas, directly", "", "", f"{answer.direct:.10f}")
    console.print(table)
    verdict = "[green]They agree.[/green]" if answer.agree else "[red]They do NOT agree.[/red]"
    console.print(f"{verdict} No row left its node; the task took {answer.seconds:.1f} s.")


def _show_next_steps() -> None:
    console.print(
        "\nNext: `make test` runs every test; README.md shows how to run an agent of your own; "
        "`.venv/bin/node-agent --help` lists its commands.\nTaking everything down …"
    )


if __name__ == "__main__":
    sys.exit(main())
