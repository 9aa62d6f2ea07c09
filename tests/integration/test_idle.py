"""A daemon that is left alone: hours of idling take nothing more, and a long history makes nothing slow."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bench.large_journal import measured
from tests.lab.agents import AgentProcess
from tests.lab.engine import EngineError, engine
from tests.lab.places import ROOT
from tests.lab.sandbox import SandboxLab
from tests.parts import or_missing

pytestmark = pytest.mark.engine

MIB = 1 << 20
FIRST, LAST = 500, 8000
"""Waits of the control loop, about a second of the simulated clock each."""
GROWTH = 4 * MIB
"""The first sweeps warm things up; a kibibyte leaked in each beat would be twice as much."""


@pytest.fixture(scope="module")
def lab() -> Iterator[SandboxLab]:
    with contextlib.ExitStack() as stack:
        with or_missing(EngineError):
            stack.enter_context(engine())
        yield stack.enter_context(SandboxLab(("alpha",)))


def test_hours_of_idling_take_no_memory_no_files_and_no_threads(lab: SandboxLab) -> None:
    before, after = idled(lab, FIRST, LAST)
    assert after["simulated"] - before["simulated"] > (LAST - FIRST) / 2
    assert after["rss"] - before["rss"] < GROWTH
    assert abs(after["files"] - before["files"]) <= 1  # the socket of a listing that is under way
    assert after["threads"] == before["threads"]


def idled(lab: SandboxLab, *beats: int) -> list[dict[str, Any]]:
    agent = AgentProcess(server_url=lab.url, api_key=lab.api_keys["alpha"])
    words = [sys.executable, "-m", "tests.lab.idle_process", str(agent.config_file), *map(str, beats)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]
    finally:
        agent.clean_up()


def test_a_history_of_100_000_runs_makes_neither_the_start_nor_the_commands_slow(lab: SandboxLab) -> None:
    figures = measured(lab, 100_000, tries=1)
    # three times what is promised: the machine of a test may be busy
    assert figures.start_without_proof < 6
    assert figures.runs < 3
    assert figures.status < 3
