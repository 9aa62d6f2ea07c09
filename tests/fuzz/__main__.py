"""Fuzz the targets with atheris, which has to be installed: `make fuzz ARGS="--seconds 600 --only envelope"`.

What is found stays in `.lab/fuzz`: the corpus grows there, and a crash is a file `crash-…` that the target fails on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.lab.places import lab_dir, say

SEEDS = Path(__file__).with_name("corpus")
NAMES = sorted(folder.name for folder in SEEDS.iterdir())
LONGEST = 4096


def main() -> int:
    """Fuzz every target in a process of its own, since a fuzzer never returns."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", choices=NAMES, help="one target")
    parser.add_argument("--inside", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _fuzz(options.inside, options.seconds)
    failed = []
    for name in [options.only] if options.only else NAMES:
        say(f"fuzzing {name} for {options.seconds} s …")
        words = ["--inside", name, "--seconds", str(options.seconds)]
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], check=False)
        failed += [name] if done.returncode else []
    say(f"failed: {', '.join(failed)}" if failed else "nothing found")
    return bool(failed)


def _fuzz(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["node_agent"]):
        from tests.fuzz.targets import TARGETS
    corpus, seeds = lab_dir("fuzz", name), SEEDS / name
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *limits, "-verbosity=0", str(corpus), str(seeds)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
