"""The agent as a process, killed wherever a run may be: started again, it ends the run once and leaves nothing."""

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.doubles.fake_server import FakeServer
from tests.lab.agents import AgentProcess
from tests.lab.images import script_image
from tests.parts import engine_client

pytestmark = pytest.mark.engine

ALGORITHM = """\
import base64, os, time

def env(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()

with open("/mnt/tmp/starts", "a") as starts:
    starts.write("x")
time.sleep(1)
with open("/mnt/tmp/starts") as starts, open(env("OUTPUT_FILE"), "w") as output:
    output.write(starts.read())
"""
STARTED_ONCE = base64.b64encode(b"x").decode()


@dataclass(frozen=True)
class Site:
    server: FakeServer
    agent: AgentProcess
    image: str

    def nothing_is_left(self) -> bool:
        return not self.agent.containers() and not list((self.agent.state_dir / "runs").iterdir())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        image = script_image(client, "counting", ALGORITHM)
        server = stack.enter_context(FakeServer())
        yield Site(
            server,
            stack.enter_context(AgentProcess(server_url=server.url, api_key=server.api_key)),
            image,
        )


@pytest.mark.parametrize(
    "state", ["admitted", "pulled", "created", "running", "captured", "finished", "reported"]
)
def test_a_run_cut_short_in_any_state_ends_once_and_leaves_nothing(site: Site, state: str) -> None:
    (run_id,) = site.server.create_task(image=site.image, input=json.dumps({}).encode()).run_ids
    site.agent.wait_for("run_advanced", within=30, run_id=run_id, to=state)
    site.agent.kill()
    site.agent.start()
    site.server.wait_until(lambda: site.server.run(run_id).finished_at, seconds=30)
    run = site.server.run(run_id)
    assert run.status == "completed"
    assert run.result == STARTED_ONCE
    site.server.wait_until(site.nothing_is_left, seconds=20)
