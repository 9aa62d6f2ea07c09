"""The commands: what they call, what they show, and how they end."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest

from node_agent import cli, screen
from node_agent.checks import CheckResult, Verdict
from node_agent.commands import Parts
from node_agent.compute.sighting import ApiSighting
from node_agent.config import ServerSettings, Settings
from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ConfigError, EngineUnreachable
from node_agent.store.presence import Presence, Sighting

SETTINGS = Settings(
    name="alpha", server=ServerSettings(url="https://h/api", api_key=Secret("k")), state_dir=Path("/state")
)
PRESENCE = Presence(
    pid=7, version="0.1.0", node="alpha node", since=1e9, online=True, server_problem="", engine_problem="",
    waiting=1, working=2, owed=0, oldest_owed_at=None, finished=5, draining=False, written_at=1e9 + 60,
)  # fmt: skip
ROW = {
    "run_id": 2, "task_id": 1, "image": "x/y:1", "databases": ["default", "omop"], "user_id": 3, "organization_id": 7,
    "status": "active", "status_code": 40, "state": "running",
    "outcome": None, "reason": "", "received_at": 1e9, "claimed_at": 1e9, "started_at": None, "finished_at": None,
}  # fmt: skip


@dataclass
class FakeAgent:
    """A process that ends after so many looks."""

    looks: int = 1
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.asked.append("let go")

    def drain(self) -> None:
        self.asked.append("drain")

    def ended_within(self, _seconds: float) -> bool:
        self.looks -= 1
        return self.looks < 0


def never(*_anything: object) -> Any:
    raise AssertionError("this command has no business there")


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_anything: object) -> Any:
        raise error

    return call


def giving(value: Any) -> Callable[..., Any]:
    return lambda *_anything: value


NOTHING = Parts(
    load=giving(SETTINGS), load_place=giving(SETTINGS), run=never, check=never, history=never, sight=never,
    see_api=giving(None), agent=never, create_key=never, show_key=never, upload_key=never, replace_key=never,
    list_keys=never, accept_key=never,
    would_go=never, prune=never, ensure_network=never, remove_network=never,
)  # fmt: skip


def call(*argv: str, **parts: Any) -> int:
    return cli.main([*argv, "-c", "/a.yaml"], parts=replace(NOTHING, **parts))


# --- exit codes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 78),
        (AccessDenied("x"), 77),
        (EngineUnreachable("x"), 75),
        (ZeroDivisionError("x"), 70),
    ],
)
def test_an_error_becomes_its_exit_code(error: Exception, code: int) -> None:
    assert call("network", "ensure", ensure_network=raising(error)) == code


def test_an_error_says_what_failed_where_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("Two faults.", hint="Correct them.", faults=("a.b: wrong", "c: \x1b[2Jworse"))
    assert call("runs", load_place=raising(error)) == 78
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "node-agent: Two faults.\n  a.b: wrong\n  c:  [2Jworse\n  → Correct them.\n"


def test_a_bug_says_so_and_leaves_the_traceback_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("network", "remove", remove_network=raising(ZeroDivisionError("x"))) == 70
    shown = capsys.readouterr().err
    assert "agent_bug" in shown
    assert "ZeroDivisionError" in shown
    assert shown.rstrip().endswith("Please report it with the line `agent_bug` above.")


@pytest.mark.parametrize(
    "argv",
    [[], ["runz"], ["run"], ["runs", "-c", "x", "--limit", "0"], ["check", "-c", "x", "--nope"], ["network"]],
)
def test_wrong_usage_has_an_exit_code_of_its_own(argv: list[str]) -> None:
    assert cli.main(argv, parts=NOTHING) == 64


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["run", "--help"], ["network", "ensure", "-h"]])
def test_help_and_version_need_no_configuration(argv: list[str]) -> None:
    assert cli.main(argv, parts=replace(NOTHING, load=never, load_place=never)) == 0


def test_ctrl_c_has_the_exit_code_shells_expect() -> None:
    assert call("runs", history=raising(KeyboardInterrupt())) == 130  # type: ignore[arg-type]


# --- run -------------------------------------------------------------------------------------------------------


def test_run_hands_the_settings_to_the_agent() -> None:
    seen: list[Settings] = []
    assert call("run", run=seen.append) == 0
    assert seen == [SETTINGS]


def test_an_agent_that_ends_with_an_error_says_so_in_the_form_of_its_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("run", run=raising(AccessDenied("The key is wrong.", hint="Get another."))) == 77
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["reason"], line["hint"]) == (
        "agent_ended",
        "The key is wrong.",
        "Get another.",
    )


# --- check -----------------------------------------------------------------------------------------------------

GOOD = CheckResult(name="disk", verdict=Verdict.OK, found="plenty")
DOUBTFUL = CheckResult(name="policy", verdict=Verdict.WARNING, found="empty", todo="List images.")
BAD = CheckResult(name="engine", verdict=Verdict.FAIL, found="away", todo="Start it.", faults=("one", "two"))


def test_check_gives_a_line_for_each_thing_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", check=giving([GOOD, DOUBTFUL, BAD])) == 1
    assert capsys.readouterr().out.splitlines() == [
        "✓ configuration  /a.yaml is understood",
        "✓ disk           plenty",
        "! policy         empty",
        "    → List images.",
        "✗ engine         away",
        "    one",
        "    two",
        "    → Start it.",
    ]


def test_a_warning_alone_does_not_fail_the_check() -> None:
    assert call("check", check=giving([GOOD, DOUBTFUL])) == 0


def test_check_answers_another_program_with_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "--json", check=giving([BAD])) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [one["name"] for one in answer["checks"]] == ["configuration", "engine"]
    assert answer["checks"][1]["faults"] == ["one", "two"]


def test_check_of_a_faulty_file_lists_its_faults_and_ends_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", load=raising(ConfigError("Faults.", faults=("a", "b")))) == 78
    assert capsys.readouterr().out.splitlines()[1:3] == ["    a", "    b"]
    assert call("check", "--json", load=raising(ConfigError("Cannot be read."))) == 78


def test_offline_leaves_the_server_out() -> None:
    left_out: list[Sequence[str]] = []

    def check(_settings: Settings, skipped: Sequence[str]) -> Iterable[CheckResult]:
        left_out.append(skipped)
        return [GOOD]

    call("check", "--offline", check=check)
    call("check", check=check)
    assert left_out == [("server",), ()]


# --- runs ------------------------------------------------------------------------------------------------------


def test_runs_shows_a_row_for_each_run_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs", history=giving([ROW, {**ROW, "run_id": 1, "reason": "\x1b[2Jno"}])) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert " ".join(heading.split()) == (
        "run task image databases user org status code received finished reason"
    )
    assert " ".join(first.split()) == "2 1 x/y:1 default, omop 3 7 active 40 2001-09-09 01:46:40Z"
    assert second.endswith("[2Jno")
    assert "\x1b" not in second


def test_runs_answers_another_program_with_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs", "--json", history=giving([ROW])) == 0
    assert json.loads(capsys.readouterr().out) == [
        {**ROW, "received_at": "2001-09-09T01:46:40.000Z", "claimed_at": "2001-09-09T01:46:40.000Z"}
    ]
    assert call("runs", "--json", history=giving([])) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_runs_asks_for_as_many_as_wanted_from_the_right_place() -> None:
    asked: list[tuple[Path, int]] = []

    def history(state_dir: Path, limit: int) -> list[dict[str, Any]]:
        asked.append((state_dir, limit))
        return []

    call("runs", history=history)
    call("runs", "-n", "3", history=history)
    assert asked == [(Path("/state"), 50), (Path("/state"), 3)]


WAITING = {**ROW, "run_id": 5, "state": "received", "status": "pending", "status_code": 1}


def test_runs_says_for_what_a_run_waits_and_at_which_place(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Sighting(pid=7, presence=replace(PRESENCE, waiting_for="all slots are taken", queue=(4, 5)))
    parts = {"history": giving([WAITING, ROW]), "sight": giving(seen)}
    assert call("runs", **parts) == 0
    _, waiting, other = capsys.readouterr().out.splitlines()
    assert waiting.endswith("waits (place 2): all slots are taken")
    assert "waits" not in other
    call("runs", "--json", **parts)
    waiting, other = json.loads(capsys.readouterr().out)
    assert (waiting["place"], waiting["waiting_for"]) == (2, "all slots are taken")
    assert "place" not in other


@pytest.mark.parametrize("seen", [Sighting(pid=None, presence=PRESENCE), Sighting(pid=8, presence=PRESENCE)])
def test_runs_does_not_believe_what_an_earlier_agent_said_of_the_queue(
    seen: Sighting, capsys: pytest.CaptureFixture[str]
) -> None:
    call("runs", "--json", history=giving([WAITING]), sight=giving(seen))
    (waiting,) = json.loads(capsys.readouterr().out)
    assert (waiting["place"], waiting["waiting_for"]) == (None, "the agent is not running")


def test_status_says_why_runs_wait(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = replace(PRESENCE, waiting_for="the one slot is taken", queue=(4,))
    call("status", sight=giving(Sighting(pid=7, presence=waiting)))
    assert "waits   because the one slot is taken" in capsys.readouterr().out
    call("status", "--json", sight=giving(Sighting(pid=7, presence=waiting)))
    assert json.loads(capsys.readouterr().out)["queue"] == [4]


def test_status_says_which_steps_hang(capsys: pytest.CaptureFixture[str]) -> None:
    hanging = replace(PRESENCE, stuck_steps=("step observe of run 4 takes 99 s",))
    call("status", sight=giving(Sighting(pid=7, presence=hanging)))
    assert "stuck   step observe of run 4 takes 99 s" in capsys.readouterr().out
    call("status", "--json", sight=giving(Sighting(pid=7, presence=hanging)))
    assert json.loads(capsys.readouterr().out)["stuck_steps"] == ["step observe of run 4 takes 99 s"]


def test_a_long_reason_does_not_break_the_table() -> None:
    assert len(screen.run_rows([{**ROW, "reason": "x" * 5000}])[1][-1]) == 100


# --- status ----------------------------------------------------------------------------------------------------


def test_status_of_a_running_agent_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("status", sight=giving(Sighting(pid=7, presence=PRESENCE))) == 0
    shown = capsys.readouterr().out
    assert "running (process 7" in shown
    assert "server  online" in shown
    assert "1 waiting, 2 working" in shown


def test_status_says_how_much_is_owed_why_and_when_it_is_tried_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    owing = replace(
        PRESENCE,
        owed=2,
        owed_bytes=3 * 1024 * 1024,
        oldest_owed_at=1e9,
        owed_problem="answered with 500",
        next_report_at=1e9 + 30,
    )
    call("status", sight=giving(Sighting(pid=7, presence=owing)))
    shown = capsys.readouterr().out
    assert "3.0 MiB; last try: answered with 500; next try 2001-09-09 01:47:10Z" in shown
    call("status", "--json", sight=giving(Sighting(pid=7, presence=owing)))
    told = json.loads(capsys.readouterr().out)
    assert (told["owed"], told["owed_bytes"], told["owed_problem"]) == (2, 3 << 20, "answered with 500")
    assert told["next_report_at"] == "2001-09-09T01:47:10.000Z"


def test_status_tells_how_the_compute_api_is(capsys: pytest.CaptureFixture[str]) -> None:
    api = ApiSighting(listen="127.0.0.1:8030", secured=False, listening=True, open_jobs=3)
    seen = giving(Sighting(pid=7, presence=PRESENCE))
    call("status", sight=seen, see_api=giving(api))
    assert capsys.readouterr().out.endswith("compute listens on http://127.0.0.1:8030, 3 jobs open\n")
    call("status", "--json", sight=seen, see_api=giving(api))
    assert json.loads(capsys.readouterr().out)["compute_api"] == {
        "listen": "127.0.0.1:8030", "secured": False, "listening": True, "open_jobs": 3,
    }  # fmt: skip
    call("status", "--json", sight=seen)
    assert json.loads(capsys.readouterr().out)["compute_api"] is None


def test_status_says_that_the_disk_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    full = replace(PRESENCE, disk_problem="The disk is full.")
    call("status", sight=giving(Sighting(pid=7, presence=full, disk_free=1024 * 512)))
    assert "disk    cannot be written to (0.5 MiB free now): The disk is full." in capsys.readouterr().out
    call("status", "--json", sight=giving(Sighting(pid=7, presence=full, disk_free=5)))
    told = json.loads(capsys.readouterr().out)
    assert (told["disk_problem"], told["disk_free"]) == ("The disk is full.", 5)


def test_status_says_when_what_it_shows_is_old(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Sighting(pid=7, presence=PRESENCE, disk_free=5, seen_at=PRESENCE.written_at + 720)
    call("status", sight=giving(seen))
    assert "its last word came 12 min ago: the agent may be stuck" in capsys.readouterr().out
    call("status", sight=giving(replace(seen, disk_read_only=True)))
    shown = capsys.readouterr().out
    assert "12 min ago: its state directory is read-only" in shown
    assert "disk    read-only" in shown
    call("status", sight=giving(replace(seen, seen_at=PRESENCE.written_at + 5)))
    assert "silent" not in capsys.readouterr().out


def test_a_refused_report_is_shown_with_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    refused = {**ROW, "state": "removed", "reason": "It crashed.", "refusal": "The server has closed run 2."}
    call("runs", history=giving([refused]))
    assert "It crashed. The server took no report: The server has closed run 2." in capsys.readouterr().out


def test_status_tells_what_is_away_and_what_is_owed(capsys: pytest.CaptureFixture[str]) -> None:
    troubled = replace(
        PRESENCE, online=False, server_problem="no answer", engine_problem="gone", owed=3, oldest_owed_at=1e9
    )
    call("status", sight=giving(Sighting(pid=7, presence=troubled)))
    shown = capsys.readouterr().out
    assert "server  offline: no answer" in shown
    assert "engine  away: gone" in shown
    assert "3 final reports, the oldest since 2001-09-09 01:46:40Z" in shown


@pytest.mark.parametrize("presence", [None, PRESENCE])
def test_status_of_an_agent_that_is_not_running_has_an_exit_code_of_its_own(
    presence: Presence | None,
) -> None:
    assert call("status", sight=giving(Sighting(pid=None, presence=presence))) == 3
    assert call("status", "--json", sight=giving(Sighting(pid=None, presence=presence))) == 3


def test_what_an_earlier_agent_said_is_not_taken_for_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("status", "--json", sight=giving(Sighting(pid=8, presence=PRESENCE))) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["running"], answer["online"], answer["pid"]) == (True, False, 8)
    call("status", sight=giving(Sighting(pid=8, presence=PRESENCE)))
    assert "still starting" in capsys.readouterr().out


def test_status_answers_another_program(capsys: pytest.CaptureFixture[str]) -> None:
    call("status", "--json", sight=giving(Sighting(pid=7, presence=PRESENCE)))
    answer = json.loads(capsys.readouterr().out)
    assert (answer["running"], answer["online"], answer["busy"], answer["owed"]) == (True, True, True, 0)
    assert answer["since"] == "2001-09-09T01:46:40.000Z"


# --- drain -----------------------------------------------------------------------------------------------------


def test_drain_asks_the_agent_and_waits_until_it_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    agent = FakeAgent(looks=3)
    parts = {
        "sight": giving(Sighting(pid=7, presence=PRESENCE)),
        "agent": giving(agent),
        "history": giving([]),
    }
    assert call("drain", **parts) == 0
    assert agent.asked == ["drain", "let go"]
    shown = capsys.readouterr().out
    assert shown.count("2 runs at work, 1 not begun, 0 reports owed") == 1
    assert "everything is reported" in shown


def test_drain_of_nothing_says_so() -> None:
    assert call("drain", sight=giving(Sighting(pid=None, presence=None))) == 3


def test_drain_never_signals_a_process_that_took_over_the_number() -> None:
    agent = FakeAgent(looks=0)
    sightings = iter([Sighting(pid=7, presence=None), Sighting(pid=None, presence=None)])
    assert call("drain", sight=lambda _: next(sightings), agent=giving(agent), history=giving([])) == 0
    assert agent.asked == ["let go"]


def test_drain_tells_when_the_agent_ended_too_early() -> None:
    parts = {"sight": giving(Sighting(pid=7, presence=None)), "agent": giving(FakeAgent(looks=0))}
    assert call("drain", history=giving([ROW]), **parts) == 1


def test_what_came_during_a_drain_is_no_fault_of_it_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"sight": giving(Sighting(pid=7, presence=None)), "agent": giving(FakeAgent(looks=0))}
    late = {**ROW, "status": "pending", "status_code": 1, "state": "received"}
    assert call("drain", history=giving([late, {**ROW, "state": "removed"}]), **parts) == 0
    shown = capsys.readouterr().out
    assert "everything is reported" in shown
    assert "Not begun, and waiting for the next start: 1." in shown


# --- network ---------------------------------------------------------------------------------------------------


def test_network_says_what_stands_and_what_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("network", "ensure", ensure_network=giving("stands")) == 0
    assert call("network", "remove", remove_network=giving("gone")) == 0
    assert capsys.readouterr().out == "stands\ngone\n"
