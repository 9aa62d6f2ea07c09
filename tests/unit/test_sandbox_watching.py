"""What a node's log says of its runs, and how that is shown."""

import json
from pathlib import Path
from typing import Any

from node_agent.sandbox.showing import Lines, run_table
from node_agent.sandbox.watching import NOW, NodeLog, RunView, Watch


def said(event: str, **facts: Any) -> str:
    return json.dumps({"event": event, **facts}) + "\n"


def received(run_id: int, *, task_id: int = 1, parent_id: int | None = None) -> str:
    return said("run_received", run_id=run_id, task_id=task_id, parent_id=parent_id)


def advanced(run_id: int, to: str, status: str, code: int) -> str:
    return said("run_advanced", run_id=run_id, to=to, status=status, status_code=code)


def log_of(tmp_path: Path, *lines: str) -> NodeLog:
    file = tmp_path / "alpha.log"
    file.write_text("".join(lines))
    log = NodeLog("alpha", file)
    log.read()
    return log


def test_a_run_is_as_far_as_its_node_said_last(tmp_path: Path) -> None:
    log = log_of(tmp_path, received(3), advanced(3, "running", "active", 40))
    assert log.runs[3] == RunView(
        organization="alpha", run_id=3, task_id=1, parent_id=None, state="running", status="active", code=40,
        now=NOW["running"], was_started=True,
    )  # fmt: skip


def test_a_pull_shows_how_much_is_here(tmp_path: Path) -> None:
    log = log_of(
        tmp_path, received(3), said("image_pull_progress", run_id=3, received=12_000_000, of=80_000_000)
    )
    assert log.runs[3].now == "pulling the image: 12 MB of 80 MB"


def test_a_run_that_waits_for_its_subtasks_says_so_and_one_that_is_to_end_says_how(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        received(3),
        said("slot_lent_to_subtasks", run_id=3),
        received(4),
        said("run_ending", run_id=4, outcome="killed", reason=""),
    )
    assert (log.runs[3].now, log.runs[4].now) == ("waiting for its subtasks", "ending: killed")


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    line = advanced(3, "running", "active", 40)
    log = log_of(tmp_path, received(3), line[:20])
    assert log.runs[3].state == "received"
    with log.file.open("a") as file:
        file.write(line[20:])
    log.read()
    assert log.runs[3].state == "running"


def test_what_is_no_json_and_what_is_not_about_a_known_run_is_passed_over(tmp_path: Path) -> None:
    log = log_of(tmp_path, "Traceback\n", "[1]\n", advanced(9, "running", "active", 40), said("heartbeat"))
    assert log.runs == {}


def test_a_node_without_a_log_yet_has_no_runs_and_is_not_online(tmp_path: Path) -> None:
    log = NodeLog("alpha", tmp_path / "none")
    log.read()
    assert (log.runs, log.is_online) == ({}, False)


def test_a_node_is_online_when_it_is_connected_and_its_machine_proven(tmp_path: Path) -> None:
    log = log_of(tmp_path, said("server_online"))
    assert not log.is_online
    log.take({"event": "agent_ready"})
    assert log.is_online
    with log.file.open("a") as file:
        file.write(said("server_offline"))
    log.read()
    assert not log.is_online


def test_a_task_is_shown_with_its_subtasks_and_their_subtasks_but_no_other_task(tmp_path: Path) -> None:
    (tmp_path / "alpha").write_text(received(1, task_id=1) + received(5, task_id=4))
    (tmp_path / "beta").write_text(
        received(4, task_id=3, parent_id=2) + received(2, task_id=2, parent_id=1) + received(9, task_id=9)
    )
    watch = Watch.of({name: tmp_path / name for name in ("alpha", "beta")})
    watch.look()
    assert [(run.organization, run.run_id) for run in watch.runs_of(1)] == [
        ("alpha", 1),
        ("beta", 2),
        ("beta", 4),
    ]


RUN = RunView(organization="alpha", run_id=3, task_id=1, parent_id=None)


def test_without_a_terminal_each_change_is_a_line_and_no_change_is_none() -> None:
    lines: list[str] = []
    show = Lines(lines.append)
    show([RUN])
    show([RUN])
    assert len(lines) == 1
    assert "alpha" in lines[0]
    assert "run 3" in lines[0]


def test_the_table_counts_the_containers_that_were_started() -> None:
    started = RunView(organization="beta", run_id=4, task_id=1, parent_id=1, was_started=True)
    last = run_table([RUN, started], idle=[("gamma", "online")]).renderables[-1]
    assert str(last) == "containers started: 1"
