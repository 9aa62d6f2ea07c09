"""The main job, end to end: three hospitals, three agents, one federated average, checked against pandas.

    python -m tests.lab.demo               the embedded server, and a researcher who needs nothing but HTTP
    python -m tests.lab.demo vantage6      the real vantage6 server and its real Python client

Starts a coordinating server, an agent for each of three organizations with a CSV file of its own, and a researcher;
sends `central_average`; shows what happens while it happens; compares the answer with the same average computed
directly with pandas over all three files. Ends with 0 only if they agree, and takes everything down again in any case.
"""

import contextlib
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from node_agent import logs
from node_agent.domain.secret import Secret
from node_agent.errors import NodeAgentError
from node_agent.sandbox.researcher import Order, Researcher
from node_agent.sandbox.showing import Lines, run_table
from node_agent.sandbox.watching import RunView, Watch
from tests.lab.agents import READY_SECONDS, AgentError, AgentProcess
from tests.lab.client import ClientError, ClientWorker
from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, average_image
from tests.lab.samples import write_hospitals
from tests.lab.sandbox import SandboxLab
from tests.lab.systems import RootError
from tests.lab.vantage6 import RealServer, ServerError
from tests.lab.venvs import VenvError

COLUMN = "age"
METHOD = "central_average"
TASK_SECONDS = 180
REFRESH_SECONDS = 0.2
TOLERANCE = 1e-9

console = Console()


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


ERRORS = (
    AgentError,
    ClientError,
    DemoError,
    EngineError,
    ImageError,
    RootError,
    NodeAgentError,
    ServerError,
    VenvError,
)


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


def main(arguments: Sequence[str]) -> int:
    """Run the demo and return its exit code."""
    cast = CASTS.get(" ".join(arguments))
    if cast is None:
        print(__doc__, file=sys.stderr)
        return 64
    logs.set_up(level="error", form="console")
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            agree = _play(stack, cast)
        console.print(f"Everything is taken down again. The demo took {time.monotonic() - started:.0f} s.")
    except (KeyboardInterrupt, SystemExit) as stop:
        console.print("\nStopped; everything of the demo is taken down again.")
        return int(stop.code or 1) if isinstance(stop, SystemExit) else 130
    except ERRORS as error:
        console.print("[red]The demo failed:[/red]", end=" ")
        console.print(str(error), markup=False)
        return 1
    return 0 if agree else 1


def _play(stack: ExitStack, cast: "Cast") -> bool:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="node-agent-demo-")))
    files = write_hospitals(folder)
    with _stage("Docker engine and the demo algorithm's image"):
        image = average_image(stack.enter_context(engine()).client())
    with _stage(cast.server_title):
        server = stack.enter_context(cast.server(tuple(files)))
    with ThreadPoolExecutor() as pool:
        # A client may take seconds to start; the agents use the time.
        asking: Future[Asks] = pool.submit(lambda: stack.enter_context(cast.researcher(server)))
        watch = _start_agents(stack, server, files)
        with _stage("a researcher"):
            researcher = asking.result()
    answer = _ask(Question(server, researcher, image, files, watch))
    _show_answer(server, answer)
    _show_next_steps()
    return answer.agree


@contextmanager
def _stage(what: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(f"{what} …"):
        yield
    console.print(f"[green]✓[/green] {what} [dim]({time.monotonic() - started:.1f} s)[/dim]")


# --- the agents -----------------------------------------------------------------------------------------------


def _start_agents(stack: ExitStack, server: Any, files: Mapping[str, Path]) -> Watch:
    started = time.monotonic()
    agents = {
        organization: AgentProcess(
            server_url=server.url,
            api_key=server.api_keys[organization],
            name=f"demo-{organization}-{os.getpid()}",
            databases={"default": file},
        )
        for organization, file in files.items()
    }
    stack.callback(_end, list(agents.values()))
    for agent in agents.values():
        agent.launch()
    watch = Watch.of({organization: agent.log_file for organization, agent in agents.items()})
    with _live() as show:
        while not all(log.is_online for log in watch.logs):
            show(watch, None)
            _check_alive(agents.values(), since=started)
            time.sleep(REFRESH_SECONDS)
        show(watch, None)
    console.print(
        f"[green]✓[/green] {len(agents)} node agents [dim]({time.monotonic() - started:.1f} s)[/dim]"
    )
    return watch


def _check_alive(agents: Any, *, since: float) -> None:
    for agent in agents:
        if not agent.is_running:
            raise AgentError(f"{agent.name} has ended:\n{agent.log_tail()}")
    if time.monotonic() - since > READY_SECONDS:
        raise AgentError(f"not every agent is online within {READY_SECONDS} s")


def _end(agents: Sequence[AgentProcess]) -> None:
    """Stop all agents and remove what they made, all at the same time."""
    with _undisturbed(), console.status("Taking everything down …"), ThreadPoolExecutor() as pool:
        for done in [pool.submit(_end_one, agent) for agent in agents]:
            done.result()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a second Ctrl-C wait: half taken down is worse than a few seconds more."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _end_one(agent: AgentProcess) -> None:
    try:
        agent.stop()
    finally:
        agent.clean_up()


# --- what is going on -----------------------------------------------------------------------------------------


Show = Callable[[Watch, int | None], None]


@contextmanager
def _live() -> Iterator[Show]:
    """Give what shows the nodes, and the runs of a task once there is one: a table that lives, or lines."""
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, refresh_per_second=1 / REFRESH_SECONDS) as live:
        yield lambda watch, task_id: live.update(_table(watch, task_id))


def _table(watch: Watch, task_id: int | None) -> Group:
    watch.look()
    runs = _runs(watch, task_id)
    busy = {run.organization for run in runs}
    idle = [
        (log.organization, "online, waiting for work" if log.is_online else "starting")
        for log in watch.logs
        if log.organization not in busy
    ]
    return run_table(runs, idle=idle)


def _runs(watch: Watch, task_id: int | None) -> list[RunView]:
    return [] if task_id is None else watch.runs_of(task_id)


class _Lines:
    """A line for each node that comes online, and for each change of a run."""

    def __init__(self) -> None:
        self._online: set[str] = set()
        self._show_runs = Lines(lambda line: console.out(f"  {line}", highlight=False))

    def __call__(self, watch: Watch, task_id: int | None) -> None:
        watch.look()
        self._show_runs(_runs(watch, task_id))
        new = {log.organization for log in watch.logs if log.is_online} - self._online
        for organization in sorted(new) if task_id is None else ():
            console.out(f"  {organization} is online", highlight=False)
        self._online |= new


# --- two casts ------------------------------------------------------------------------------------------------


class Asks(Protocol):
    """A researcher."""

    def send(self, image: str, column: str, organization_id: int) -> int:
        """Send the question to one organization and give the number of its task."""

    def answer(self, task_id: int) -> dict[str, Any]:
        """Wait for the answer. Raises DemoError with the log when there is none."""

    def hang_up(self) -> None:
        """Stop waiting, from another thread."""


class PlainResearcher:
    """A researcher by plain HTTP."""

    def __init__(self, server: SandboxLab) -> None:
        user = server.organizations[0]
        password = Secret(server.passwords[user])
        self._collaboration_id = server.collaboration_id
        self._researcher = Researcher.at(server.url, username=user, password=password)
        self._hung_up = threading.Event()

    def send(self, image: str, column: str, organization_id: int) -> int:
        """Send the question."""
        return self._researcher.send(
            Order(
                image=image,
                method=METHOD,
                organizations=(organization_id,),
                collaboration_id=self._collaboration_id,
                kwargs={"column": column},
                databases=("default",),
            )
        )

    def answer(self, task_id: int) -> dict[str, Any]:
        """Ask now and then until it is there."""
        deadline = time.monotonic() + TASK_SECONDS
        while not all(run.is_over for run in self._researcher.runs(task_id)):
            if time.monotonic() > deadline or self._hung_up.wait(REFRESH_SECONDS):
                raise DemoError(f"the task has not ended within {TASK_SECONDS} s")
        results = self._researcher.results(task_id)
        if not results:
            said = "\n".join(f"{run.status}: {run.log}" for run in self._researcher.runs(task_id))
            raise DemoError("the task has no result; its run says:\n" + said)
        answer: dict[str, Any] = next(iter(results.values()))
        return answer

    def hang_up(self) -> None:
        """Stop waiting."""
        self._hung_up.set()


class ClientResearcher:
    """A researcher with the real client."""

    def __init__(self, client: ClientWorker) -> None:
        self._client = client

    def send(self, image: str, column: str, organization_id: int) -> int:
        """Send the question."""
        return self._client.create_task(
            image=image, method=METHOD, arguments={"column": column}, organizations=[organization_id]
        )

    def answer(self, task_id: int) -> dict[str, Any]:
        """Let the client wait."""
        results = self._client.results(task_id, within=TASK_SECONDS)
        if not results or results[0] is None:
            said = "\n".join(f"{run['status']}: {run['log']}" for run in self._client.runs(task_id))
            raise DemoError("the task has no result; its run says:\n" + said)
        answer: dict[str, Any] = results[0]
        return answer

    def hang_up(self) -> None:
        """End the client's process: it cannot be asked to stop waiting."""
        self._client.hang_up()


@contextmanager
def _plain_researcher(server: SandboxLab) -> Iterator[Asks]:
    yield PlainResearcher(server)


@contextmanager
def _client_researcher(server: RealServer) -> Iterator[Asks]:
    with ClientWorker(server) as client:
        yield ClientResearcher(client)


@dataclass(frozen=True)
class Cast:
    """Who plays the server and the researcher."""

    server_title: str
    server: Callable[[Sequence[str]], contextlib.AbstractContextManager[Any]]
    researcher: Callable[[Any], contextlib.AbstractContextManager[Asks]]


CASTS: Mapping[str, Cast] = {
    "": Cast("embedded coordinating server", SandboxLab, _plain_researcher),
    "vantage6": Cast("vantage6 server 4.15.2", RealServer, _client_researcher),
}


# --- the question ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Everybody who takes part in the question."""

    server: Any
    researcher: Asks
    image: str
    files: Mapping[str, Path]
    watch: Watch


def _ask(question: Question) -> Answer:
    server, researcher = question.server, question.researcher
    asking = server.organizations[0]
    console.print(f"\nThe researcher of {asking} asks: what is the average {COLUMN} over all three?")
    started = time.monotonic()
    task_id = researcher.send(question.image, COLUMN, server.organization_ids[asking])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(researcher.answer, task_id)
        try:
            _watch_until(waiting.done, question.watch, task_id)
        except BaseException:
            researcher.hang_up()  # else leaving the pool would wait for the whole task
            raise
        federated = waiting.result()
    return Answer(federated, _direct(question.files), time.monotonic() - started)


def _watch_until(is_over: Callable[[], bool], watch: Watch, task_id: int) -> None:
    with _live() as show:
        while not is_over():
            show(watch, task_id)
            time.sleep(REFRESH_SECONDS)
        time.sleep(2 * REFRESH_SECONDS)  # for the nodes to say that nothing is left
        show(watch, task_id)


def _direct(files: Mapping[str, Path]) -> float:
    import pandas as pd

    return float(pd.concat(pd.read_csv(path) for path in files.values())[COLUMN].mean())


# --- the answer -----------------------------------------------------------------------------------------------


def _show_answer(server: Any, answer: Answer) -> None:
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
        "\nNext, as root:\n"
        "  .venv/bin/node-agent sandbox up       such a network of your own, for as long as you like\n"
        "  .venv/bin/node-agent sandbox run …    your own algorithm on it; docs/sandbox.md shows how\n"
        "  make demo-vantage6                    the same with the real vantage6 server and client\n"
        "  make test                             every test\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
