"""A task through a server, an agent and an engine that all run without root."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.runtime.network import bridge_is_here

SECONDS = 240


def node_agent(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "node_agent", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def sandbox() -> Iterator[Path]:
    node_agent("sandbox", "up", "--nodes", "1")
    yield Path(os.environ["XDG_STATE_HOME"], "node-agent", "sandbox", "default")
    node_agent("sandbox", "down")


def test_a_task_runs_and_what_is_not_enforced_is_said(sandbox: Path) -> None:
    told = node_agent("sandbox", "run", "node-agent-lab/tiny", "--method", "any")
    assert "completed" in told
    logs = "".join(file.read_text() for file in sandbox.rglob("log.jsonl"))
    # Either the engine holds every limit, or the log names those that it does not hold.
    assert ("isolation_proven" in logs) != ("does not enforce these limits" in logs)


def test_outside_of_the_namespace_no_bridge_is_seen() -> None:
    assert not bridge_is_here("na-nowhere")
