"""The bench: everything that is measured, in one run, each part also by itself: `make bench`.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.bench [--quick] [--only burst,result] [--rounds 3]

Owns the command, the order of the parts and where the results go. Must not know how anything is measured.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.bench.document import DOCUMENT, draw, drawing, rewrite
from tests.bench.failures import NOT_HERE, BenchError
from tests.bench.machine import load, machine_facts
from tests.bench.scale import QUICK, WHOLE, Scale
from tests.bench.stage import Stage
from tests.bench.tables import show
from tests.lab.places import lab_dir, say

PARTS: Mapping[str, str] = {
    "idle": "idle",
    "empty": "empty",
    "burst": "burst",
    "calls": "calls",
    "average": "average",
    "result": "results",
    "input": "inputs",
    "log": "long_log",
    "proxy": "proxied",
    "journal": "journal",
    "queue": "queued",
}
"""By name, in the order they are measured: the module of `tests.bench.parts`. What disturbs others most comes last."""
STAGES: Mapping[str, str] = {
    **dict.fromkeys(("idle", "empty", "burst"), "pair"),
    **dict.fromkeys(("result", "input", "log"), "places"),
}
"""Parts that share what is set up; the others have a stage of their own."""


def main(arguments: Sequence[str]) -> int:
    """Measure, tell, and keep; the exit code is 1 when a part failed, whatever the figures are."""
    asked = _parser().parse_args(arguments)
    if asked.told is not None:
        return _tell(json.loads(asked.told.read_text()), asked)
    drawing()  # before the long part, so that nothing is measured in vain
    result = measure(asked.only, _scale(asked))
    return _tell(result, asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure our agent beside others.")
    parser.add_argument("--only", type=_names, default=tuple(PARTS), help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small numbers, about four minutes")
    parser.add_argument("--rounds", type=_positive, help="how often what takes turns does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument(
        "--docs", action="store_true", help=f"renew the figures and charts of {DOCUMENT.name}"
    )
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="told", help="measure nothing, tell an earlier result"
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _scale(asked: argparse.Namespace) -> Scale:
    scale = QUICK if asked.quick else WHOLE
    return scale if asked.rounds is None else scale.with_rounds(asked.rounds)


# --- measuring ------------------------------------------------------------------------------------------------


def measure(names: Sequence[str], scale: Scale) -> dict[str, Any]:
    """Measure these parts in their order; one that fails is told and stops no other."""
    started = time.monotonic()
    with Stage() as stage:
        result: dict[str, Any] = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "scale": scale.name,
            "machine": machine_facts(stage.client),
            "parts": {},
            "failed": {},
        }
        for _, parts in groupby([part for part in PARTS if part in names], _stage_of):
            stage.leave()
            for name in parts:
                _measure_one(stage, scale, name, result)
                _keep(result, _kept())
    result["took"] = time.monotonic() - started
    return result


def _stage_of(part: str) -> str:
    return STAGES.get(part, part)


def _measure_one(stage: Stage, scale: Scale, name: str, result: dict[str, Any]) -> None:
    part = importlib.import_module(f"tests.bench.parts.{PARTS[name]}")
    facts, began = {"load_before": load()}, time.monotonic()
    say(f"--- {name} (load {facts['load_before']:.1f})")
    with told(stage, name, result["failed"]):
        found = part.measure(stage, scale)
        result["parts"][name] = {**found, **facts, "took": time.monotonic() - began}


@contextmanager
def told(stage: Stage, name: str, failed: dict[str, str]) -> Iterator[None]:
    """Let nothing that goes wrong in one part keep the next from being measured."""
    try:
        yield
    except NOT_HERE as error:
        failed[name] = f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - a mistake in one part is no reason to throw away what others found
        traceback.print_exc()
        failed[name] = f"{type(error).__name__}: {error}"
    if name in failed:
        say(f"{name} failed: {failed[name]}")
        stage.leave()


# --- telling --------------------------------------------------------------------------------------------------


def _tell(result: Mapping[str, Any], asked: argparse.Namespace) -> int:
    kept = _kept()
    for file in [kept, *([asked.json] if asked.json else [])]:
        _keep(result, file)
    show(result)
    say(f"the result is in {kept}")
    draw(kept, kept.parent)
    say(f"the charts are in {kept.parent}")
    if asked.docs:
        draw(kept, DOCUMENT.with_suffix(""))
        rewrite(result)
        say(f"renewed {DOCUMENT} and its charts")
    return 1 if result["failed"] else 0


def _kept() -> Path:
    return lab_dir("bench") / "result.json"


def _keep(result: Mapping[str, Any], file: Path) -> None:
    """Write what there is, after every part too: who interrupts the bench keeps what was measured."""
    file.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (*NOT_HERE, BenchError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        say("interrupted; everything is put away")
        sys.exit(130)
