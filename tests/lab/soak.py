"""Many runs on one node, while its agent and its server are killed at random moments; then everything is counted.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.lab.soak [--runs 500] [--agent-kills 30]
        [--server-kills 10] [--seed 1] [--json]

Every final report must have been accepted once, every algorithm started once (it counts for itself), and nothing may be
left: no container, network endpoint, volume or run folder. The exit code is 0 only then. When something is killed depends
on the seed and on how many runs have ended; what it hits depends on the machine.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent import logs
from node_agent.errors import NodeAgentError
from node_agent.sandbox.researcher import Order, Researcher
from tests.lab.agents import AgentProcess
from tests.lab.counting import ENDED_RUNS, NOTE_REPORTS, Reckoning, counting_image, nothing_is_left, reckon
from tests.lab.engine import engine
from tests.lab.places import say
from tests.lab.sandbox_process import SandboxProcess

ORGANIZATION = "alpha"
AT_ONCE = 12
"""So many runs are open at a time: some wait for a slot, some work, some are owed."""
LIMITS = {"concurrent_runs": 6, "cpus": 1, "memory": "64MiB", "tmp_size": "4MiB", "output_size": "256KiB"}
LONGEST_WORK = 1.0
LONGEST_ABSENCE = 1.5
LONGEST_LIFE_CUT_SHORT = 3.0
SHARE_CUT_SHORT = 0.3
"""Of the lives after a kill, so many end soon: while the agent starts, or has just begun."""
PROGRESS_EVERY = 25
STUCK_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is sent, and how often what dies."""

    runs: int = 500
    agent_kills: int = 30
    server_kills: int = 10
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    plan: Plan
    agent_kills: int
    server_kills: int
    seconds: float
    reckoning: Reckoning

    @property
    def is_fine(self) -> bool:
        """Tell whether all was sent, everybody died as often as planned, and every run came to its one end."""
        as_planned = (self.reckoning.runs, self.agent_kills, self.server_kills) == (
            self.plan.runs,
            self.plan.agent_kills,
            self.plan.server_kills,
        )
        return as_planned and self.reckoning.is_clean


class Soak:
    """One server, one agent, and the dice."""

    def __init__(self, plan: Plan, server: SandboxProcess, agent: AgentProcess, image: str) -> None:
        self._plan = plan
        self._server = server
        self._agent = agent
        self._image = image
        self._dice = random.Random(plan.seed)
        self._deaths = self._drawn()
        self.agent_kills = self.server_kills = 0

    def _drawn(self) -> list[tuple[int, str]]:
        """Draw who dies after how many runs have ended; the last in the list is the first."""
        plan = self._plan
        dying = ["agent"] * plan.agent_kills + ["server"] * plan.server_kills
        # a run must be left to be killed in
        moments = [self._dice.randrange(max(1, plan.runs - AT_ONCE)) for _ in dying]
        self._dice.shuffle(dying)
        return sorted(zip(moments, dying, strict=True), reverse=True)

    def go(self) -> None:
        """Send, kill, and wait until everything is over."""
        member = self._server.connection.researcher
        researcher = Researcher.at(
            self._server.connection.url, username=member.username, password=member.password
        )
        sent = said = 0
        progress_by = time.monotonic() + STUCK_SECONDS
        while (ended := self.ended()) < self._plan.runs or not nothing_is_left(self._agent):
            if ended > said:
                progress_by = time.monotonic() + STUCK_SECONDS
            if ended // PROGRESS_EVERY > said // PROGRESS_EVERY:
                say(f"{ended} of {self._plan.runs} runs have ended")
            said = ended
            assert time.monotonic() < progress_by, f"stuck:\n{self._agent.log_tail()}"
            while sent < min(self._plan.runs, ended + AT_ONCE):
                self._send(researcher)
                sent += 1
            self._kill_who_is_due(ended)
            time.sleep(0.1)

    def ended(self) -> int:
        """Count the runs the server has an end of."""
        return len([row for row in self.rows() if row["accepted"]])

    def rows(self) -> list[dict[str, object]]:
        """Read how the server sees each run."""
        node_id = self._server.connection.researcher.node_id
        return [dict(row) for row in self._server.rows(ENDED_RUNS, node_id)]

    def _send(self, researcher: Researcher) -> None:
        member = self._server.connection.researcher
        researcher.send(
            Order(
                image=self._image,
                method="count",
                organizations=(member.id,),
                collaboration_id=self._server.connection.collaboration_id,
                kwargs={"seconds": round(self._dice.uniform(0, LONGEST_WORK), 2)},
            )
        )

    def _kill_who_is_due(self, ended: int) -> None:
        while self._deaths and self._deaths[-1][0] <= ended:
            _, who = self._deaths.pop()
            time.sleep(self._dice.uniform(0, LONGEST_ABSENCE))
            if who == "agent":
                self._kill_agent()
            else:
                self._kill_server()

    def _kill_agent(self) -> None:
        self._agent.kill()
        self.agent_kills += 1
        time.sleep(self._dice.uniform(0, LONGEST_ABSENCE))
        self._agent.launch()
        if self._dice.random() < SHARE_CUT_SHORT:
            time.sleep(self._dice.uniform(0, LONGEST_LIFE_CUT_SHORT))
        else:
            self._agent.wait_until_ready()

    def _kill_server(self) -> None:
        self._server.kill()
        self.server_kills += 1
        time.sleep(self._dice.uniform(0, LONGEST_ABSENCE))
        self._server.start()


def soak(plan: Plan) -> Outcome:
    """Do it all, with an engine that answers, and give what came of it."""
    started = time.monotonic()
    with _parts(plan) as (server, agent, image):
        going = Soak(plan, server, agent, image)
        going.go()
        agent.stop()
        return Outcome(
            plan=plan,
            agent_kills=going.agent_kills,
            server_kills=going.server_kills,
            seconds=round(time.monotonic() - started, 1),
            reckoning=reckon(agent, going.rows()),
        )


@contextlib.contextmanager
def _parts(plan: Plan) -> Iterator[tuple[SandboxProcess, AgentProcess, str]]:
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(engine())
        client = stack.enter_context(contextlib.closing(found.client()))
        image = counting_image(client)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        server = SandboxProcess(folder, (ORGANIZATION,))
        stack.callback(server.kill)
        server.start()
        server.change(*NOTE_REPORTS)
        member = server.connection.researcher
        agent = AgentProcess(
            server_url=server.connection.url,
            api_key=member.api_key.reveal(),
            settings={"limits": LIMITS},
        )
        say(
            f"{plan.runs} runs; the agent dies {plan.agent_kills} times, the server {plan.server_kills} times"
        )
        yield server, stack.enter_context(agent), image


def main() -> int:
    """Read the words, soak, and print."""
    parser = argparse.ArgumentParser(description="Kill the agent and the server among many runs, and count.")
    parser.add_argument("--runs", type=int, default=Plan.runs)
    parser.add_argument("--agent-kills", type=int, default=Plan.agent_kills)
    parser.add_argument("--server-kills", type=int, default=Plan.server_kills)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    words = vars(parser.parse_args())
    as_json = words.pop("json")
    logs.set_up(level="warning", form="auto")
    try:
        outcome = soak(Plan(**words))
    except NodeAgentError as error:
        say(str(error))
        return 1
    if as_json:
        print(json.dumps({"fine": outcome.is_fine, **asdict(outcome)}))
    else:
        print(_text(outcome))
    return 0 if outcome.is_fine else 1


def _text(outcome: Outcome) -> str:
    found = outcome.reckoning
    deaths = f"agent killed {outcome.agent_kills} times, server {outcome.server_kills} times"
    left = f"{found.containers} containers, {found.endpoints} endpoints, {found.volumes} volumes"
    lines = [
        f"{found.runs} runs in {outcome.seconds:.0f} s; {deaths} (seed {outcome.plan.seed})",
        f"  right result and log      {found.right}",
        f"  reported once             {found.reported_once}",
        f"  started once              {found.started_once}",
        f"  over in the journal       {found.removed}",
        f"  left                      {left}, {found.folders} run folders",
        *found.wrong,
        "nothing lost, nothing twice, nothing left" if outcome.is_fine else "NOT as it must be",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
