"""A task of `sandbox run`: how it is sent, when it is over, and what its author is told."""

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ConfigError, ServerUnreachable
from node_agent.sandbox.connection import Connection, Member
from node_agent.sandbox.place import Place
from node_agent.sandbox.processes import Mark, is_running
from node_agent.sandbox.reasons import reason_of
from node_agent.sandbox.researcher import Order, Researcher, decoded
from node_agent.sandbox.showing import ended_text, nothing, result_text
from node_agent.sandbox.trying import Ended, EndedRun, Network, follow
from node_agent.sandbox.watching import RunView, Watch
from node_agent.server.exchange import Call, Reply

ORDER = Order(
    image="lab/a", method="m", organizations=(1,), collaboration_id=1, kwargs={"x": 1}, databases=("default",)
)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def run_entry(
    run_id: int, status: str, *, task_id: int = 7, over: bool = True, log: str = ""
) -> Mapping[str, Any]:
    return {
        "id": run_id,
        "status": status,
        "log": log,
        "finished_at": "2026-01-01T00:00:00" if over else None,
        "organization": {"id": 1},
        "task": {"id": task_id},
    }


@dataclass
class FakeServer:
    """Answers a researcher's calls, and remembers them."""

    runs: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()
    subtasks: Sequence[int] = ()
    login: int = 200
    expired: int = 0
    refuses: bool = False
    calls: list[Call] = field(default_factory=list)

    def send(self, call: Call) -> Reply:
        self.calls.append(call)
        if call.path == "token/user":
            return self._reply(
                call, {"access_token": "t"} if self.login == 200 else {"msg": "wrong"}, self.login
            )
        if self.expired:
            self.expired -= 1
            return self._reply(call, {"msg": "old"}, 401)
        return self._reply(call, *self._answer(call))

    def _answer(self, call: Call) -> tuple[Any, int]:
        query: Any = call.query
        if call.path == "task" and call.method == "POST":
            return ({"msg": "no node"}, 400) if self.refuses else ({"id": 7}, 201)
        if call.path == "task":
            return {"data": [{"id": number} for number in self.subtasks]}, 200
        if call.path == "run":
            return {"data": list(self.runs.get(query["task_id"], ()))}, 200
        return {"data": list(self.results)}, 200

    def _reply(self, call: Call, body: Any, status: int) -> Reply:
        return Reply(call=str(call), status=status, body=json.dumps(body).encode())

    def close(self) -> None:
        """Nothing is open."""

    def paths(self) -> list[str]:
        return [str(call) for call in self.calls]


def researcher(server: FakeServer) -> Researcher:
    return Researcher(server, "alpha", Secret("p"))


# --- the researcher -------------------------------------------------------------------------------------------


def test_a_task_is_sent_with_its_input_in_base64_for_each_organization() -> None:
    server = FakeServer()
    assert researcher(server).send(ORDER) == 7
    content = server.calls[-1].body
    assert isinstance(content, bytes)
    (organization,) = json.loads(content)["organizations"]
    assert json.loads(base64.b64decode(organization["input"])) == {
        "method": "m",
        "args": [],
        "kwargs": {"x": 1},
    }


def test_a_task_the_server_does_not_take_is_told_in_its_words() -> None:
    with pytest.raises(ConfigError, match="no node"):
        researcher(FakeServer(refuses=True)).send(ORDER)


def test_a_wrong_password_is_told() -> None:
    with pytest.raises(AccessDenied, match="wrong"):
        researcher(FakeServer(login=400)).send(ORDER)


def test_a_token_that_grew_old_is_replaced_once() -> None:
    server = FakeServer(expired=1)
    assert researcher(server).send(ORDER) == 7
    assert server.paths() == ["POST /token/user", "POST /task"] * 2
    with pytest.raises(ServerUnreachable):
        researcher(FakeServer(expired=2)).runs(7)


def test_lists_are_read_page_by_page() -> None:
    server = FakeServer(runs={7: [run_entry(number, "completed") for number in range(100)]})
    seen: list[Any] = []

    def second_page_is_short(call: Call) -> Reply:
        seen.append(call.query)
        server.runs = {7: server.runs[7] if len(seen) == 1 else [run_entry(100, "completed")]}
        return FakeServer.send(server, call)

    user = researcher(server)
    user.send(ORDER)
    user.exchange = SendsBy(second_page_is_short)
    assert [run.id for run in user.runs(7)] == list(range(101))
    assert [query["page"] for query in seen] == [1, 2]


@dataclass
class SendsBy:
    send: Callable[[Call], Reply]

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("sent", "value"),
    [(in_base64('{"a": 1}'), {"a": 1}), (in_base64("a word"), "a word"), ("no base64!", "no base64!")],
)
def test_a_result_is_read_as_far_as_it_can_be(sent: str, value: Any) -> None:
    assert decoded(sent) == value


# --- following ------------------------------------------------------------------------------------------------


def own_mark() -> Mark:
    birth = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return Mark(os.getpid(), birth)


@dataclass
class World:
    """A sandbox whose node writes its log while `sandbox run` pauses."""

    network: Network
    pauses: list[float]


def world(tmp_path: Path, server: FakeServer, *log: str) -> World:
    place = Place("s", tmp_path / "s")
    place.claim(("alpha",))
    mark = own_mark()
    place.nodes["alpha"].mark_file.write_text(f"{mark.pid} {mark.birth}")
    pauses: list[float] = []
    lines = iter(log)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        with place.nodes["alpha"].log.open("a") as file:
            file.write(next(lines))

    network = Network(
        place=place,
        connection=CONNECTION,
        researcher=researcher(server),
        watch=Watch.of({"alpha": place.nodes["alpha"].log}),
        pause=pause,
    )
    return World(network, pauses)


CONNECTION = Connection(
    url="http://127.0.0.1:1/api", server_url="http://127.0.0.1", port=1, api_path="/api", collaboration_id=1,
    collaboration="c", members=(
        Member(id=1, name="alpha", username="alpha", password=Secret("p"), node_id=11, api_key=Secret("k")),
    ),
)  # fmt: skip


def line(event: str, **facts: Any) -> str:
    return json.dumps({"event": event, "run_id": 3, "task_id": 7, **facts}) + "\n"


RECEIVED = line("run_received", parent_id=None)
RUNNING = line("run_advanced", to="running", status="active", status_code=40)
REMOVED = line("run_advanced", to="removed", status="completed", status_code=70)


def test_a_task_is_followed_until_the_server_has_its_end_and_the_node_has_cleaned_up(tmp_path: Path) -> None:
    server = FakeServer(
        runs={7: [run_entry(3, "completed", log="fine")]},
        results=[{"run": {"id": 3}, "result": in_base64("[1]")}],
    )
    shown: list[str] = []
    made = world(tmp_path, server, RECEIVED, RUNNING, REMOVED)
    server.runs = {7: [run_entry(3, "active", over=False)]}

    def show(views: Sequence[RunView]) -> None:
        shown.extend(view.state for view in views)
        if "running" in shown:
            server.runs = {7: [run_entry(3, "completed", log="fine")]}

    ended = follow(made.network, ORDER, show=show)
    assert shown[-1] == "removed"
    assert "running" in shown
    assert ended.is_completed
    (run,) = ended.runs
    assert (run.organization, run.status, run.code, run.result, run.log, run.reason) == (
        "alpha", "completed", 70, [1], "fine", "",
    )  # fmt: skip


def test_a_run_that_the_server_ended_before_its_node_heard_of_it_is_over(tmp_path: Path) -> None:
    server = FakeServer(runs={7: [run_entry(3, "failed", log="Marked as failed because")]})
    made = world(tmp_path, server)
    ended = follow(made.network, ORDER, show=nothing)
    assert not ended.is_completed
    assert made.pauses == []


def test_an_interrupted_task_is_killed(tmp_path: Path) -> None:
    server = FakeServer(runs={7: [run_entry(3, "pending", over=False)]})
    made = world(tmp_path, server)

    def interrupted(_views: Sequence[RunView]) -> None:
        if "POST /kill/task" not in server.paths():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(made.network, ORDER, show=interrupted)
    assert server.paths()[-1] == "POST /kill/task"


def test_a_task_for_a_node_that_is_not_running_is_not_sent(tmp_path: Path) -> None:
    server = FakeServer()
    made = world(tmp_path, server)
    made.network.place.nodes["alpha"].mark_file.unlink()
    with pytest.raises(ConfigError, match="not running"):
        follow(made.network, ORDER, show=nothing)
    assert server.calls == []


def test_subtasks_that_failed_are_told_with_their_logs(tmp_path: Path) -> None:
    server = FakeServer(
        runs={
            7: [run_entry(3, "crashed", log="central")],
            8: [run_entry(4, "crashed", task_id=8, log="x\nKeyError: 'age'")],
        },
        subtasks=[8],
    )
    ended = follow(world(tmp_path, server).network, ORDER, show=nothing)
    assert [run.reason for run in ended.subtasks] == ["The algorithm crashed: KeyError: 'age'"]
    assert "KeyError" in ended_text(ended)
    assert ended.as_dict()["completed"] is False


def test_an_unknown_organization_is_refused_with_those_there_are(tmp_path: Path) -> None:
    network = world(tmp_path, FakeServer()).network
    assert network.numbers_of(()) == network.numbers_of(("alpha",)) == (1,)
    with pytest.raises(ConfigError, match="It has: alpha"):
        network.numbers_of(("zeta",))


def test_a_sandbox_whose_server_is_gone_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not running"):
        Network.at(world(tmp_path, FakeServer()).network.place)


# --- reasons --------------------------------------------------------------------------------------------------

TYPE_ERROR = "Traceback\nTypeError: partial_average() "


@pytest.mark.parametrize(
    ("status", "log", "words"),
    [
        ("completed", "ValueError: caught", ""),
        ("non-existing Docker image", "[node] no answer", "lab/a is not on this machine"),
        ("crashed", "error > Method 'men' not found!", "no method 'men'"),
        ("crashed", TYPE_ERROR + "got an unexpected keyword argument 'col'", "wrong arguments"),
        ("crashed", TYPE_ERROR + "missing 1 required positional argument: 'column'", "too few arguments"),
        ("crashed", TYPE_ERROR + "takes 1 positional argument but 3 were given", "too many arguments"),
        ("crashed", "a.b.UserInputError: there is no column 'x'\n", "there is no column 'x'"),
        ("crashed", "ModuleNotFoundError: No module named 'torch'", "lacks the Python module 'torch'"),
        ("crashed", "ValueError: first\nZeroDivisionError: last\n[node] ended", "ZeroDivisionError: last"),
        ("crashed", "[node] The algorithm ended with exit code 3.", "exit code 3"),
        ("crashed", "", "crashed"),
        ("killed by user", "", "killed"),
        ("not allowed", "", "--image"),
        ("unheard of", "", "unheard of"),
    ],
)
def test_the_reason_is_told_in_plain_words(status: str, log: str, words: str) -> None:
    told = reason_of(status, log, image="lab/a", method="m")
    assert words in told
    assert bool(told) == bool(words)


def test_a_log_with_braces_cannot_break_the_sentence() -> None:
    assert "{0}" in reason_of("crashed", "KeyError: {0} {name}", image="i", method="m")


# --- what is printed ------------------------------------------------------------------------------------------


def test_nothing_an_algorithm_wrote_can_steer_the_terminal() -> None:
    run = EndedRun(
        organization="alpha", run_id=3, task_id=7, status="crashed", code=41, result="\x1b[2J", log="\x1b]0;x",
        reason="\x1b[31m",
    )  # fmt: skip
    assert "\x1b" not in ended_text(Ended(task_id=7, seconds=1.0, runs=(run,), subtasks=()))


def test_long_results_and_long_logs_are_cut_with_a_word_about_it() -> None:
    assert "1000 more characters" in result_text("x" * 5000)
    run = EndedRun(
        organization="alpha", run_id=3, task_id=7, status="crashed", code=None, result=None,
        log="\n".join(map(str, range(100))), reason="",
    )  # fmt: skip
    text = ended_text(Ended(task_id=7, seconds=1.0, runs=(run,), subtasks=()))
    assert "40 lines before" in text
    assert "    99\n" in text


def test_a_task_without_runs_is_not_completed() -> None:
    assert not Ended(task_id=7, seconds=1.0, runs=(), subtasks=()).is_completed


# --- processes ------------------------------------------------------------------------------------------------


def test_a_process_is_recognised_by_its_birth_and_not_by_its_number_alone() -> None:
    mark = own_mark()
    assert is_running(mark)
    assert not is_running(Mark(mark.pid, "1"))
    assert not is_running(None)
