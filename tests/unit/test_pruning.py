"""`node-agent prune`: what it says, whom it asks, and when it keeps its hands off."""

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent import __version__
from node_agent.domain.keeping import Why
from node_agent.domain.run import RunId, State
from node_agent.domain.task import JobKey
from node_agent.errors import ConfigError
from node_agent.pruning import JournalRuns, Pruned, prune, would_go
from node_agent.store.journal import SqliteJournal
from node_agent.store.lock import AgentLock
from node_agent.store.presence import PresenceFile
from node_agent.sweep import Stray
from tests.doubles.clock import ManualClock
from tests.doubles.core import make_run
from tests.unit.test_cli import PRESENCE, SETTINGS, call, giving
from tests.unit.test_keeping import image

PRUNED = Pruned(strays=(Stray("image", "r/a\x1b[2J:1", Why.UNUSED, lambda: True),), runs=3, left="")


# --- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "verb"), [((), "removed"), (("--dry-run",), "would remove")])
def test_each_thing_is_a_line_with_its_reason(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], verb: str
) -> None:
    parts: dict[str, Any] = {"would_go" if options else "prune": giving(PRUNED)}
    assert call("prune", *options, **parts) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{verb} image r/a [2J:1: not used for long",
        f"{verb} 3 runs from the journal: kept long enough",
    ]


def test_another_program_gets_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prune", "--json", prune=giving(PRUNED)) == 0
    assert json.loads(capsys.readouterr().out) == {
        "removed": [{"kind": "image", "name": "r/a\x1b[2J:1", "why": "not used for long"}],
        "runs": 3,
        "left": "",
    }


def test_what_had_to_stay_is_said_and_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prune", prune=giving(replace(PRUNED, left="2 things stay"))) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 things stay"


def test_nothing_to_remove_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prune", "--dry-run", would_go=giving(Pruned(strays=(), runs=0))) == 0
    assert capsys.readouterr().out == "There is nothing to remove.\n"


# --- who does it ----------------------------------------------------------------------------------------------


def test_where_no_agent_ever_ran_there_is_nothing_and_nothing_is_made(quick_dir: Path) -> None:
    settings = replace(SETTINGS, state_dir=quick_dir / "state")
    for ask in (would_go, prune):
        assert ask(settings, ManualClock()) == Pruned(strays=(), runs=0)
    assert list(quick_dir.iterdir()) == []


def test_an_agent_of_another_version_is_never_sent_a_signal_it_may_not_know(quick_dir: Path) -> None:
    settings = replace(SETTINGS, name=f"prune-{os.getpid()}", state_dir=quick_dir)
    lock = AgentLock(settings.name, quick_dir)
    try:
        for said in (None, replace(PRESENCE, pid=os.getpid(), version="0.0.1"), replace(PRESENCE, pid=1)):
            if said is not None:
                PresenceFile(quick_dir).write(said)
            with pytest.raises(ConfigError, match="another version"):
                prune(settings, ManualClock())
    finally:
        lock.release()
    assert __version__ != "0.0.1"


def test_another_users_state_directory_is_not_touched(quick_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    (quick_dir / "runs").mkdir()
    os.chown(quick_dir, 4321, 4321)
    with pytest.raises(ConfigError, match="belongs to the user 4321"):
        prune(replace(SETTINGS, state_dir=quick_dir), ManualClock())
    assert sorted(path.name for path in quick_dir.iterdir()) == ["runs"]


def test_the_open_runs_are_those_of_the_moment_of_the_question(quick_dir: Path) -> None:
    runs = JournalRuns(quick_dir)
    assert not runs.is_open(RunId(1))
    with closing(SqliteJournal(quick_dir)) as journal:
        run = make_run(1, image_id="a")
        journal.insert(run)
        journal.insert(make_run(2, state=State.REMOVED))
        assert (runs.is_open(RunId(1)), runs.is_open(RunId(2))) == (True, False)
        assert runs.job_is_open(run.task.job)
        assert not runs.job_is_open(JobKey("0-0"))
        assert runs.needs_image([image("a", unused_for=0)])
        assert not runs.needs_image([image("b", unused_for=0)])
