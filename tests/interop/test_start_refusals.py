"""An agent that cannot work says why and ends with the right code."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.stage import Stage
from tests.lab.agents import AgentProcess

pytestmark = pytest.mark.interop


@pytest.fixture
def agent(real: Stage) -> Iterator[AgentProcess]:
    made = real.agent()
    yield made
    made.clean_up()


def test_a_wrong_api_key_is_told_and_ends_with_77(real: Stage) -> None:
    stranger = AgentProcess(
        server_url=real.server.url, api_key="00000000-0000-4000-8000-000000000000", databases={}
    )
    try:
        stranger.launch()
        assert stranger.wait(within=40) == 77
        print(stranger.log_tail())
        assert "API key" in stranger.log_tail()
        assert "api_key" in stranger.log_tail()
        assert "00000000-0000-4000-8000-000000000000" not in stranger.log_tail()
    finally:
        stranger.clean_up()


def test_a_second_agent_of_the_same_name_is_refused_naming_the_first(agent: AgentProcess) -> None:
    agent.start()
    second = agent.command("run")
    assert second.returncode == 78
    print(second.stderr)
    assert str(agent.pid) in second.stderr
    assert agent.name in second.stderr
    agent.stop()


def test_every_fault_of_the_file_is_listed_at_once(agent: AgentProcess) -> None:
    agent.config_file.write_text(
        agent.config_file.read_text()
        + "\nmemory: 4GiB\nlimit:\n  cpus: 2\nhardening:\n  relax:\n  - image: 'x'\n    root: true\n"
    )
    text = agent.config_file.read_text().replace(
        "databases: []",
        "databases:\n- {label: a, type: csv, uri: /nowhere/a.csv}\n- {label: a, type: cvs, uri: /nowhere/b.csv}",
    )
    agent.config_file.write_text(text)
    refused = agent.command("run")
    print(refused.stderr)
    assert refused.returncode == 78
    for words in (
        "memory",
        "limits",
        "hardening.relax[0].root",
        "databases[0].uri",
        "databases[1].label",
        "csv",
    ):
        assert words in refused.stderr


def test_a_file_that_is_not_yaml_is_refused_with_the_line(agent: AgentProcess) -> None:
    agent.config_file.write_text("name: alpha\nserver: [1, 2\nstate_dir: /tmp\n")
    refused = agent.command("run")
    assert refused.returncode == 78
    assert "line 3" in refused.stderr


def test_a_database_that_algorithms_could_not_read_is_told_with_the_command_that_helps(
    real: Stage, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to have a file of another user")
    secret = tmp_path / "patients.csv"
    secret.write_text("age\n1\n")
    secret.chmod(0o600)
    agent = real.agent(databases={"default": secret})
    try:
        refused = agent.command("run")
        print(refused.stderr)
        assert refused.returncode == 78
        assert str(secret) in refused.stderr
        assert "setfacl" in refused.stderr or "chmod" in refused.stderr or "chgrp" in refused.stderr
    finally:
        agent.clean_up()
