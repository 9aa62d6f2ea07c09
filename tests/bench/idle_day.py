"""A day of idle on a simulated clock: memory, open files and threads of the agent, hour by hour.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.bench.idle_day [--hours 24]

The agent is the real one, with engine and sandbox server; only its waits take no time (see tests/lab/idle_process.py).
"""

import argparse
import json
import subprocess
import sys

from tests.lab.agents import AgentProcess
from tests.lab.engine import engine
from tests.lab.places import ROOT
from tests.lab.sandbox import SandboxLab

BEATS_PER_HOUR = 4500
MIB = 1 << 20


def main() -> int:
    """Measure and print a line an hour."""
    parser = argparse.ArgumentParser(description="Idle for a day on a simulated clock.")
    parser.add_argument("--hours", type=int, default=24)
    asked = parser.parse_args()
    with engine(), SandboxLab(("alpha",)) as lab:
        agent = AgentProcess(server_url=lab.url, api_key=lab.api_keys["alpha"])
        beats = [500, *(hour * BEATS_PER_HOUR for hour in range(1, asked.hours + 1))]
        words = [sys.executable, "-m", "tests.lab.idle_process", str(agent.config_file), *map(str, beats)]
        try:
            with (
                agent.log_file.open("wb") as log,
                subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True) as idle,
            ):
                assert idle.stdout is not None
                for line in idle.stdout:
                    _show(json.loads(line))
        finally:
            agent.clean_up()
    return 0


def _show(found: dict[str, object]) -> None:
    hours = float(str(found["simulated"])) / 3600
    threads = found["threads"]
    assert isinstance(threads, list)
    print(
        f"{hours:5.1f} h  {int(str(found['rss'])) / MIB:6.1f} MiB  {found['files']} files  {len(threads)} threads",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
