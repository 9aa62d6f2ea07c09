"""The `sandbox` commands as an author of algorithms types them, and the demo, against a real engine."""

import contextlib
import csv
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.runtime.firewall import table_name
from tests.interop.stage import NOT_HERE, eventually
from tests.lab.engine import engine
from tests.lab.images import average_image, script_image

pytestmark = pytest.mark.interop

COMMAND_SECONDS = 180
"""Far longer than anything takes: what is awaited is a state, also on a busy machine."""
CRASH = "print('about to divide')\nprint(1 // 0)\n"
SLEEP = "import time\nprint('asleep', flush=True)\ntime.sleep(600)\n"
WRITE = """\
import base64, os
with open(base64.b32decode(os.environ["OUTPUT_FILE"].replace("!", "=")).decode(), "w") as output:
    output.write('{"built": "a moment ago"}')
"""


@dataclass(frozen=True)
class Sandboxes:
    """Two sandboxes side by side: `first` as it comes, `second` with own data and a policy."""

    docker: docker.DockerClient
    home: Path
    first: str
    second: str
    average: str

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return sandbox(self.home, *words)

    def run(self, *words: str, name: str | None = None) -> tuple[int, dict[str, Any]]:
        done = self.command("run", *words, "--name", name or self.first, "--json")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def names_on_machine(self, sandbox_name: str) -> list[str]:
        return traces(self.docker, f"sandbox-{sandbox_name}-")


def sandbox(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "node_agent", "sandbox", *words],
        env={**os.environ, "XDG_STATE_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def traces(client: docker.DockerClient, prefix: str) -> list[str]:
    """List the containers and networks of nodes with that prefix, and the processes that name them."""
    containers = client.containers.list(all=True, ignore_removed=True)
    networks = client.networks.list()
    named = [str(container.name) for container in containers] + [str(network.name) for network in networks]
    found = [name for name in named if prefix in name]
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and prefix.encode() in (process / "cmdline").read_bytes():
                found.append(f"process {process.name}")
    return found


def tables() -> set[str]:
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"node_agent_\w+", listed))


@pytest.fixture(scope="module")
def images() -> Iterator[tuple[docker.DockerClient, str]]:
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
            average = average_image(client)
        except NOT_HERE as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: {error}")
        yield client, average


@pytest.fixture(scope="module")
def both(
    images: tuple[docker.DockerClient, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandboxes]:
    client, average = images
    home = tmp_path_factory.mktemp("sandboxes")
    own = home / "own.csv"
    own.write_text("age\n10\n20\n60\n")
    first, second = (f"{word}-{secrets.token_hex(3)}" for word in ("one", "two"))
    ups: Sequence[Sequence[str]] = (
        ["--name", first],
        ["--name", second, "--data", str(own), "--image", "node-agent-lab/average"],
    )
    try:
        with ThreadPoolExecutor() as pool:
            for done in pool.map(lambda words: sandbox(home, "up", *words), ups):
                assert done.returncode == 0, done.stderr
        yield Sandboxes(client, home, first, second, average)
    finally:
        ended = sandbox(home, "down", "--all")
    assert ended.returncode == 0, ended.stderr


def average_of(files: Sequence[Path]) -> float:
    ages = [int(row["age"]) for file in files for row in csv.DictReader(file.read_text().splitlines())]
    return sum(ages) / len(ages)


# --- tasks that go well -----------------------------------------------------------------------------------------


def test_a_federated_average_over_the_sample_data_is_that_of_all_rows(both: Sandboxes) -> None:
    code, ended = both.run(
        both.average,
        "--method",
        "central_average",
        "--kwargs",
        '{"column": "age"}',
        "--organizations",
        "alpha",
    )
    (run,) = ended["runs"]
    files = sorted((both.home / "node-agent" / "sandbox" / both.first / "data").iterdir())
    assert len(files) == 3
    assert run["result"]["average"] == pytest.approx(average_of(files))
    assert (code, ended["completed"], run["status"], run["code"]) == (0, True, "completed", 70)
    assert len(ended["subtasks"]) == 3


def test_without_json_each_step_is_told_and_the_result_is_printed(both: Sandboxes) -> None:
    done = both.command(
        "run", both.average, "--method", "partial_average", "--args", '["age"]', "--name", both.second
    )
    assert done.returncode == 0, done.stderr
    assert '"sum": 90.0' in done.stdout
    assert re.search(r"alpha +run \d+ +task +running +40", done.stderr)


def test_an_image_built_a_moment_ago_runs_at_once(both: Sandboxes) -> None:
    image = script_image(both.docker, f"fresh-{both.first}", WRITE)
    try:
        code, ended = both.run(image, "--method", "any", "--organizations", "beta", "--databases", "")
    finally:
        both.docker.images.remove(image, force=True)
    assert code == 0, ended
    assert ended["runs"][0]["result"] == {"built": "a moment ago"}


# --- tasks that do not ------------------------------------------------------------------------------------------


def failed(both: Sandboxes, *words: str, name: str | None = None) -> dict[str, Any]:
    code, ended = both.run(*words, "--organizations", "alpha", name=name)
    assert (code, ended["completed"]) == (1, False)
    run: dict[str, Any] = ended["runs"][0]
    return run


def test_an_image_that_crashes_is_told_with_the_error_and_the_log(both: Sandboxes) -> None:
    run = failed(both, script_image(both.docker, "crash", CRASH), "--method", "any")
    assert (run["status"], run["code"]) == ("crashed", 41)
    assert "ZeroDivisionError" in run["reason"]
    assert "about to divide" in run["log"]


def test_an_image_that_does_not_exist_is_told(both: Sandboxes) -> None:
    run = failed(both, "127.0.0.1:9/nowhere", "--method", "any")
    assert (run["status"], run["code"]) == ("non-existing Docker image", 32)
    assert "127.0.0.1:9/nowhere is not on this machine" in run["reason"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "partial_average", "--kwargs", '{"col": 1}'], "unexpected keyword argument 'col'"),
        (["--method", "partial_average"], "missing 1 required positional argument: 'column'"),
        (["--method", "no_such_method"], "no method 'no_such_method'"),
        (["--method", "partial_average", "--args", '["nope"]'], "no column 'nope'"),
    ],
)
def test_wrong_arguments_are_told_in_plain_words(both: Sandboxes, words: list[str], told: str) -> None:
    run = failed(both, both.average, *words)
    assert run["status"] == "crashed"
    assert told in run["reason"]


def test_an_image_the_sandbox_was_not_made_for_is_not_run(both: Sandboxes) -> None:
    run = failed(both, "node-agent-lab/crash", "--method", "any", name=both.second)
    assert run["status"] == "not allowed"


def test_an_organization_that_is_not_there_is_refused_before_anything_is_sent(both: Sandboxes) -> None:
    done = both.command("run", "i", "--method", "m", "--organizations", "zeta", "--name", both.second)
    assert done.returncode == 78
    assert "It has: alpha" in done.stderr


def test_ctrl_c_kills_the_task_and_its_container(both: Sandboxes) -> None:
    image = script_image(both.docker, "asleep", SLEEP)
    words = ["run", image, "--method", "m", "--organizations", "gamma", "--name", both.first]
    with started("node_agent", "sandbox", *words, home=both.home) as process:
        read_until(process, r"running +40")
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=COMMAND_SECONDS)[0]
    assert process.returncode == 130, output
    assert "The task is killed." in output
    eventually(lambda: not containers_of(both, "gamma"), within=COMMAND_SECONDS, what="the container's end")


@contextlib.contextmanager
def started(*words: str, home: Path) -> "Iterator[subprocess.Popen[str]]":
    with ctrl_c_reaches_children():
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *words],
            env={**os.environ, "XDG_STATE_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()  # nothing happens when it has ended


@contextlib.contextmanager
def ctrl_c_reaches_children() -> Iterator[None]:
    """Let what is started here hear SIGINT: a shell has its background jobs ignore it, and so would their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def containers_of(both: Sandboxes, organization: str) -> list[Any]:
    label = [f"node-agent.name=sandbox-{both.first}-{organization}", "node-agent.run"]
    found: list[Any] = both.docker.containers.list(ignore_removed=True, filters={"label": label})
    return found


# --- side by side, up and down ----------------------------------------------------------------------------------


def test_status_shows_both_and_how_to_connect_to_one(both: Sandboxes) -> None:
    short = both.command("status")
    assert short.returncode == 0
    assert "3 of 3 nodes online" in short.stdout
    assert "1 of 1 nodes online" in short.stdout
    long = both.command("status", "--name", both.second)
    assert "client.authenticate('alpha', " in long.stdout
    listed = json.loads(both.command("status", "--json").stdout)
    assert {sandbox["name"] for sandbox in listed} == {both.first, both.second}
    assert len({sandbox["connection"]["port"] for sandbox in listed}) == 2
    assert all(sandbox["connection"]["server_url"] == "http://127.0.0.1" for sandbox in listed)


def test_a_name_that_is_taken_is_refused_and_the_sandbox_goes_on(both: Sandboxes) -> None:
    done = both.command("up", "--name", both.second)
    assert done.returncode == 78
    assert "is up already" in done.stderr
    assert both.command("status", "--name", both.second).returncode == 0


def test_no_process_list_shows_a_secret(both: Sandboxes) -> None:
    (standing,) = json.loads(both.command("status", "--name", both.second, "--json").stdout)
    (member,) = standing["connection"]["organizations"]
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert both.second in listed
    assert member["password"] not in listed
    assert member["api_key"] not in listed


def test_down_leaves_nothing_even_while_a_task_runs_and_a_node_was_killed(
    both: Sandboxes, tmp_path: Path
) -> None:
    name = f"gone-{secrets.token_hex(3)}"
    prefix = f"sandbox-{name}-"
    rules = {table_name(prefix + organization) for organization in ("alpha", "beta")}
    up = sandbox(tmp_path, "up", "--name", name, "--nodes", "2")
    assert up.returncode == 0, up.stderr
    assert rules <= tables()
    image = script_image(both.docker, "asleep", SLEEP)
    folder = tmp_path / "node-agent" / "sandbox" / name
    words = ["run", image, "--method", "m", "--name", name]
    with started("node_agent", "sandbox", *words, home=tmp_path) as task:
        eventually(
            lambda: len([trace for trace in traces(both.docker, prefix) if "-run-" in trace]) == 2,
            within=COMMAND_SECONDS,
            what="two containers",
        )
        os.kill(int((folder / "nodes" / "beta" / "process").read_text().split()[0]), signal.SIGKILL)
        output = task.communicate(timeout=COMMAND_SECONDS)[0]
    assert "The node of beta is not running" in output
    done = sandbox(tmp_path, "down", "--name", name)
    assert done.returncode == 0, done.stderr
    assert traces(both.docker, prefix) == []
    assert tables() & rules == set()
    assert not folder.exists()


def test_a_sandbox_that_cannot_come_up_says_why_and_leaves_nothing(both: Sandboxes, tmp_path: Path) -> None:
    unreadable = tmp_path / "own.csv"
    unreadable.write_text("age\n1\n")
    unreadable.chmod(0o600)
    name = f"never-{secrets.token_hex(3)}"
    done = sandbox(tmp_path, "up", "--name", name, "--data", str(unreadable))
    assert done.returncode == 78
    assert "could not read" in done.stderr
    assert str(unreadable) in done.stderr
    assert traces(both.docker, f"sandbox-{name}-") == []
    assert sandbox(tmp_path, "status").stdout.startswith("There is no sandbox")


# --- the demo ---------------------------------------------------------------------------------------------------


def left_by(process: "subprocess.Popen[str]", client: docker.DockerClient) -> list[str]:
    organizations = ("alpha", "beta", "gamma")
    return [trace for name in organizations for trace in traces(client, f"demo-{name}-{process.pid}")]


def test_the_demo_agrees_with_pandas_and_leaves_nothing(
    images: tuple[docker.DockerClient, str], tmp_path: Path
) -> None:
    with started("tests.lab.demo", home=tmp_path) as process:
        output = process.communicate(timeout=COMMAND_SECONDS)[0]
    assert process.returncode == 0, output
    assert "They agree." in output
    assert re.search(r"gamma +run \d+ +subtask +running +40", output)
    assert left_by(process, images[0]) == []


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [(signal.SIGINT, r"running +40", 130), (signal.SIGTERM, r"is online", 143)],
    ids=["Ctrl-C while it computes", "SIGTERM while it starts"],
)
def test_a_demo_that_is_interrupted_leaves_nothing(
    images: tuple[docker.DockerClient, str], tmp_path: Path, number: signal.Signals, moment: str, code: int
) -> None:
    with started("tests.lab.demo", home=tmp_path) as process:
        read_until(process, moment)
        process.send_signal(number)
        output = process.communicate(timeout=COMMAND_SECONDS)[0]
    assert process.returncode == code, output
    assert "taken down" in output
    assert left_by(process, images[0]) == []


def read_until(process: "subprocess.Popen[str]", wanted: str) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if re.search(wanted, line):
            return
    pytest.fail(f"it ended before there was {wanted}:\n{''.join(said)}")
