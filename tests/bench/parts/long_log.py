"""A run that logs very much: our agent beside the bare engine, and what the agent's memory does.

The engine keeps the end of such a log only, as each run's container is set up; the agent takes over the last of it.
vantage6's own node is left out: it reads a log as a whole into memory and sends all of it.
"""

from typing import Any

import docker

from node_agent.domain.run import State
from tests.bench.bare import ByHand
from tests.bench.places import plain_place
from tests.bench.researcher import Job
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.lab.images import script_image
from tests.lab.places import say

LINE = 1000
TALKING = """\
import base64, os, sys
path = base64.b32decode(os.environ["OUTPUT_FILE"].replace("!", "=")).decode()
with open(path, "wb") as output:
    output.write(b"{{}}")
block = (b"x" * {rest} + b"\\n") * 1000
out = sys.stdout.buffer
for _ in range({blocks}):
    out.write(block)
out.flush()
"""


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Run it once by hand and once by the agent."""
    script = TALKING.format(rest=LINE - 1, blocks=scale.log // (LINE * 1000))
    image = stage.offered(lambda client: _talking(client, script), f"talking-{scale.log}")
    place = plain_place(stage)
    place.ended_run(Job(stage.empty_image))
    say(f"a log of {scale.log / 1e6:.0f} MB by hand …")
    by_hand = ByHand.beside(place.agent, stage.client, image).run()
    say(f"a log of {scale.log / 1e6:.0f} MB by our agent …")
    run = place.ended_run(Job(image))
    reported = run.states[State.REPORTED.name]
    return {
        "size": scale.log,
        "by_hand": by_hand,
        "agent": reported - run.answered,
        "after_end": reported - run.ended,
        "memory": run.memory,
    }


def _talking(client: docker.DockerClient, script: str) -> str:
    return script_image(client, "talking", script)
