"""An empty run through our agent, beside vantage6's own node and `docker run` of the same image: `make bench`.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.bench.compare [--rounds 10] [--json | --markdown]

Owns the rounds and the figures. Must not know how a run is made. All on one machine, one server, one image; the three take
turns (A B C A B C …), so that what else the machine does falls on all of them alike.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.peer import BenchError, Contestant, Memory, contestants
from tests.lab.engine import EngineError
from tests.lab.images import ImageError
from tests.lab.places import say
from tests.lab.registry import RegistryError
from tests.lab.vantage6 import ServerError
from tests.lab.vantage6_node import NodeError
from tests.lab.venvs import VenvError

NOT_HERE = (BenchError, EngineError, ImageError, NodeError, RegistryError, ServerError, VenvError)
ROUNDS = 10
WARM_UP = 2
GOAL = 0.4
IDLE_SECONDS = 5
# After a run its owner still clears up, and vantage6's node looks for work and for ends once a second. The pause lets
# the first pass, and being uneven it meets the second at any moment.
PAUSE_SECONDS = (1.0, 2.0)


@dataclass(frozen=True)
class Figures:
    """What one way of running took, in seconds, and what it holds while idle."""

    name: str
    title: str
    samples: tuple[float, ...]
    idle: Memory | None

    @property
    def median(self) -> float:
        """Return the middle of the samples."""
        return statistics.median(self.samples)

    @property
    def p95(self) -> float:
        """Return what 95 of 100 runs stay below, as far as so few can tell."""
        if len(self.samples) == 1:
            return self.samples[0]
        return statistics.quantiles(self.samples, n=20, method="inclusive")[-1]


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit code is 0 whatever the figures are."""
    asked = _parser().parse_args(arguments)
    figures = measure(rounds=asked.rounds)
    if asked.json:
        print(json.dumps(as_json(figures), indent=2))
    elif asked.markdown:
        print(as_markdown(figures))
    else:
        show(figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure empty runs, three ways, on this machine.")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"default {ROUNDS}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the figures and every sample as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table of docs/performance.md")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


# --- measuring ------------------------------------------------------------------------------------------------


def measure(*, rounds: int) -> list[Figures]:
    """Let all three take turns and return what each took."""
    with contestants() as taking_part:
        for number in range(1 - WARM_UP, 1):
            _round(taking_part, f"warm-up {number + WARM_UP}/{WARM_UP}")
        took = [_round(taking_part, f"round {number}/{rounds}") for number in range(1, rounds + 1)]
        time.sleep(IDLE_SECONDS)
        return [
            Figures(
                name=one.name,
                title=one.title,
                samples=tuple(seconds[one.name] for seconds in took),
                idle=one.memory() if one.memory else None,
            )
            for one in taking_part
        ]


def _round(taking_part: Sequence[Contestant], title: str) -> Mapping[str, float]:
    seconds = {}
    for one in taking_part:
        time.sleep(random.uniform(*PAUSE_SECONDS))
        seconds[one.name] = one.run()
    say(f"{title}: " + ", ".join(f"{one.title} {seconds[one.name]:.2f} s" for one in taking_part))
    return seconds


# --- telling --------------------------------------------------------------------------------------------------


def ratio_to(figures: Sequence[Figures], name: str) -> float:
    """Divide the agent's median by the named one's."""
    by_name = {one.name: one for one in figures}
    return by_name["agent"].median / by_name[name].median


def as_json(figures: Sequence[Figures]) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "rounds": len(figures[0].samples),
        "seconds": {
            one.name: {"median": one.median, "p95": one.p95, "samples": one.samples} for one in figures
        },
        "idle_mib": {one.name: asdict(one.idle) for one in figures if one.idle},
        "ratio_to_vantage6_node": ratio_to(figures, "vantage6_node"),
        "ratio_to_docker_run": ratio_to(figures, "docker_run"),
    }


def rows(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """Return the table, header first."""
    header = ("empty run", "median", "p95", "ours / this", "idle RSS", "idle PSS")
    return [header, *(_row(figures, one) for one in figures)]


def _row(figures: Sequence[Figures], one: Figures) -> tuple[str, ...]:
    memory = (f"{one.idle.rss:.0f} MiB", f"{one.idle.pss:.0f} MiB") if one.idle else ("-", "-")
    return (
        one.title,
        f"{one.median:.2f} s",
        f"{one.p95:.2f} s",
        f"{ratio_to(figures, one.name):.2f}",
        *memory,
    )


def as_markdown(figures: Sequence[Figures]) -> str:
    """Return the table as the documentation shows it."""
    header, *body = rows(figures)
    lines = [header, ("---", *("---:" for _ in header[1:])), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def show(figures: Sequence[Figures]) -> None:
    """Print the table for a person."""
    header, *body = rows(figures)
    table = Table(title=f"From posting a task until the server shows its end: {_count(figures)}")
    for number, cell in enumerate(header):
        table.add_column(cell, justify="right" if number else "left")
    for cells in body:
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(verdict(figures))


def verdict(figures: Sequence[Figures]) -> str:
    """Say in one sentence whether the agent is as quick as it shall be."""
    ratio = ratio_to(figures, "vantage6_node")
    reached = "reached" if ratio <= GOAL else "missed"
    return (
        f"Our agent takes {ratio:.2f} of the time of vantage6's own node; goal at most {GOAL:.2f}: {reached}."
    )


def _count(figures: Sequence[Figures]) -> str:
    return f"{len(figures[0].samples)} rounds"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NOT_HERE as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        say("interrupted; everything is put away")
        sys.exit(130)
