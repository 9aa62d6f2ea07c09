"""What the daemon does without: libraries that only other uses need are not loaded when it starts."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys
from node_agent import lean

def loaded():
    return sorted(set(json.loads(sys.argv[1])) & set(sys.modules))

lean.leave_rich_out()
lean.share_arenas()
from node_agent import app, cli, logs
at_the_start = loaded()
from node_agent.payload import ciphers
import rich
print(json.dumps([at_the_start, loaded()]))
"""
HEAVY = ["rich", "pygments", "cryptography", "pandas", "numpy", "pyarrow", "node_agent.sandbox.server"]


def test_the_daemon_starts_without_what_only_other_uses_need_and_can_still_load_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], ["cryptography", "rich"]]
