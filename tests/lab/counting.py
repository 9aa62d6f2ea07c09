"""What counts for itself: an algorithm that notes its own starts, and a server's books that note each final report.

Owns the reckoning after a test with deaths in it: how each run ended, how often it was started and reported, and what is
left of it. Must not know who died, or when.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from node_agent.store.journal import read_history
from tests.lab.agents import LABEL, AgentProcess
from tests.lab.images import shell_image
from tests.lab.sandbox import SandboxLab

ALGORITHM = """\
printf x >> /mnt/tmp/starts
cat /mnt/tmp/starts > "$(printf %s "$OUTPUT_FILE" | tr '!' '=' | base32 -d)"
sleep "$(sed 's/.*"seconds": *\\([0-9.]*\\).*/\\1/' "$(printf %s "$INPUT_FILE" | tr '!' '=' | base32 -d)")"
echo started
"""
"""Notes its start where it outlives the container, says how often it was started, and works for as long as it is told."""

EVERYTHING = 100_000
"""More runs than a test has."""

STARTED_ONCE = "eA=="
"""The result of a run that was started once, as it travels."""

NOTE_REPORTS = (
    "CREATE TABLE accepted (run_id INTEGER NOT NULL)",
    """\
    CREATE TRIGGER note_report AFTER UPDATE OF finished_at ON run WHEN NEW.finished_at IS NOT NULL
    BEGIN INSERT INTO accepted VALUES (NEW.id); END""",
)
"""Lets the books of an embedded server count the final reports they accept."""

ENDED_RUNS = (
    "SELECT id, status, result, log, (SELECT count(*) FROM accepted WHERE run_id = run.id) AS accepted"
    " FROM run WHERE node_id = ? ORDER BY id"
)


def counted(lab: SandboxLab) -> SandboxLab:
    """Let a server's books count the final reports they accept."""
    for statement in NOTE_REPORTS:
        lab.server.database.change(statement)
    return lab


def counting_image(client: docker.DockerClient) -> str:
    """Return the image of the algorithm that counts its starts."""
    return shell_image(client, "counting-starts", ALGORITHM)


@dataclass(frozen=True, kw_only=True)
class Reckoning:
    """What came of all the runs of one agent."""

    runs: int
    right: int
    """Completed, with the right result and the algorithm's own log."""
    reported_once: int
    started_once: int
    removed: int
    """Over in the agent's own journal too."""
    containers: int
    endpoints: int
    volumes: int
    folders: int
    wrong: tuple[str, ...]
    """Each run that did not end as it must."""

    @property
    def is_clean(self) -> bool:
        """Tell whether nothing was lost, nothing done twice, and nothing left."""
        all_well = {self.right, self.reported_once, self.started_once, self.removed} == {self.runs}
        nothing_left = not any((self.containers, self.endpoints, self.volumes, self.folders))
        return all_well and nothing_left and not self.wrong


def reckon(agent: AgentProcess, rows: Iterable[Mapping[str, Any]]) -> Reckoning:
    """Look at everything; *rows* are the server's, as `ENDED_RUNS` asks for them."""
    ended = list(rows)
    starts = [file.read_text() for file in agent.state_dir.glob("jobs/*/starts")]
    journal = json.loads(agent.command("runs", "--json", "--limit", str(EVERYTHING)).stdout)
    left = left_in_engine(agent)
    return Reckoning(
        runs=len(ended),
        right=sum(_is_right(row) for row in ended),
        reported_once=sum(row["accepted"] == 1 for row in ended),
        started_once=starts.count("x"),
        removed=sum(run["state"] == "removed" for run in journal),
        folders=len(run_folders(agent)),
        wrong=tuple(
            f"run {row['id']}: {row['status']}, result {row['result']}, {row['accepted']} reports: {row['log']}"
            for row in ended
            if not _is_right(row) or row["accepted"] != 1
        ),
        **left,
    )


def run_folders(agent: AgentProcess) -> list[Path]:
    """List what the agent still keeps of runs."""
    folder = agent.state_dir / "runs"
    return sorted(folder.iterdir()) if folder.exists() else []


def nothing_is_left(agent: AgentProcess) -> bool:
    """Tell whether containers and run folders are gone, and the journal knows it."""
    over = all(run["state"] == "removed" for run in read_history(agent.state_dir, EVERYTHING))
    return over and not run_folders(agent) and not agent.containers()


def left_in_engine(agent: AgentProcess) -> dict[str, int]:
    """Count what the engine still has of an agent's runs."""
    ours = {"label": f"{LABEL}={agent.name}"}
    with contextlib.closing(agent.engine()) as client:
        networks = [client.api.inspect_network(network.id) for network in client.networks.list(filters=ours)]
        of_no_run = agent.of_no_run()
        return {
            "containers": len(agent.containers()),
            "endpoints": sum(len(network["Containers"].keys() - of_no_run) for network in networks),
            "volumes": len(client.volumes.list(filters=ours)),
        }


def _is_right(row: Mapping[str, Any]) -> bool:
    return (row["status"], row["result"], row["log"]) == ("completed", STARTED_ONCE, "started\n")
