"""What a journal of 100,000 finished runs costs: start, `runs`, `status`, and one search for old runs.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.bench.large_journal [--runs 100000] [--json]

A sandbox server, one agent with a generated journal, everything asked as a person would: by the command line. The start
is the time from `agent_starting` to `agent_ready` in the agent's own log, with the proof of isolation; beside it stands
the time that the proof itself took, and an empty journal for comparison.
"""

import argparse
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from node_agent.domain.run import ContainerId, Outcome, Run, RunId, State, Status
from node_agent.store.journal import FILE_NAME, SqliteJournal
from tests.doubles.core import make_run, make_task
from tests.lab.agents import AgentProcess
from tests.lab.engine import engine
from tests.lab.sandbox import SandboxLab

DAY = 86_400.0
TRANSITIONS = 8


@dataclass(frozen=True)
class Figures:
    """Seconds."""

    start: float
    """From the first line of the log until the agent is ready."""
    proof: float
    """Of that: making the network and proving it."""
    process: float
    """From the start of the process until the agent is ready."""
    runs: float
    runs_1000: float
    status: float
    megabytes: float

    @property
    def start_without_proof(self) -> float:
        """Return the part of the start that does not wait for containers."""
        return self.start - self.proof


def fill(state_dir: Path, count: int, *, now: float) -> None:
    """Write a journal of runs that ended within the last 80 days, each with its transitions."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(SqliteJournal(state_dir)) as journal:
        journal.insert(_ended(1, at=now))
    with contextlib.closing(sqlite3.connect(state_dir / FILE_NAME)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(run)") if row[1] != "run_id"]
        shift = {"finished_at": f"finished_at - n * {80 * DAY / count}", "task_id": "task_id + n"}
        copied = ", ".join(shift.get(column, column) for column in columns)
        numbers = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number LIMIT ?)"
        connection.execute(
            f"{numbers} INSERT INTO run (run_id, {', '.join(columns)}) "  # noqa: S608 - our own words
            f"SELECT 1 + n, {copied} FROM run, number WHERE run_id = 1",
            (count - 1,),
        )
        connection.executemany(
            "INSERT INTO transition (run_id, at, from_state, to_state) SELECT run_id, finished_at, ?, ? FROM run",
            [(state, state + 1) for state in range(1, TRANSITIONS + 1)],
        )
        connection.commit()


def _ended(number: int, *, at: float) -> Run:
    return replace(
        make_run(number, task=make_task(number, init_user_id=4)),
        state=State.REMOVED,
        outcome=Outcome.COMPLETED,
        announced=Status.COMPLETED,
        received_at=at - 90,
        claimed_at=at - 89,
        started_at=at - 80,
        finished_at=at,
        digest="sha256:" + "d" * 64,
        image_id="sha256:" + "e" * 64,
        container=ContainerId("f" * 64),
        token_hash="a" * 64,
        exit_code=0,
        id=RunId(number),
    )


@contextlib.contextmanager
def agent_with(lab: SandboxLab, count: int) -> Iterator[AgentProcess]:
    """Give an agent that is not started yet, with a journal of so many runs."""
    agent = AgentProcess(server_url=lab.url, api_key=lab.api_keys["alpha"])
    try:
        if count:
            fill(agent.state_dir, count, now=time.time())
        yield agent
        agent.stop()
    finally:
        agent.clean_up()


def measured(lab: SandboxLab, count: int, *, tries: int = 3) -> Figures:
    """Start an agent with so many finished runs, and ask it what people ask."""
    with agent_with(lab, count) as agent:
        began = time.monotonic()
        agent.launch()
        agent.wait_for("agent_ready", within=120)
        process = time.monotonic() - began
        lines = {line["event"]: line for line in agent.log_lines()}
        proven = lines.get("isolation_proven") or lines["isolation_open"]
        started = _moment(lines["agent_starting"])
        size = (agent.state_dir / FILE_NAME).stat().st_size
        return Figures(
            start=_moment(lines["agent_ready"]) - started,
            proof=_moment(proven) - _moment(lines["proxy_listening"]),
            process=process,
            runs=_seconds(agent, tries, "runs", "--json"),
            runs_1000=_seconds(agent, tries, "runs", "--json", "--limit", "1000"),
            status=_seconds(agent, tries, "status", "--json"),
            megabytes=size / 1e6,
        )


def _moment(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _seconds(agent: AgentProcess, tries: int, *words: str) -> float:
    """Measure a command from outside, the interpreter's start included; the best of so many."""
    return min(_once(agent, *words) for _ in range(tries))


def _once(agent: AgentProcess, *words: str) -> float:
    began = time.monotonic()
    done = agent.command(*words)
    if done.returncode != 0:
        raise subprocess.SubprocessError(done.stderr)
    return time.monotonic() - began


def main() -> int:
    """Measure and print; the exit code is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description="Measure what a large journal costs.")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args()
    with engine(), SandboxLab(("alpha",)) as lab:
        figures = {count: measured(lab, count) for count in (0, asked.runs)}
    if asked.json:
        print(json.dumps({str(count): asdict(found) for count, found in figures.items()}, indent=2))
        return 0
    for count, found in figures.items():
        print(
            f"{count:>7,} runs ({found.megabytes:.0f} MB): start {found.start:.2f} s, of it the proof {found.proof:.2f} s; "
            f"process to ready {found.process:.2f} s; "
            f"runs {found.runs:.2f} s, runs --limit 1000 {found.runs_1000:.2f} s, status {found.status:.2f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
