"""The figures in docs/performance.md: the section between two marks, and the charts beside it.

Owns where they go. Must not know what was measured.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.failures import BenchError
from tests.bench.tables import as_markdown
from tests.lab.places import ROOT
from tests.lab.venvs import environment, venv

DOCUMENT = ROOT / "docs" / "performance.md"
FIRST_MARK = "<!-- figures: written by `make bench ARGS=--docs` -->"
LAST_MARK = "<!-- end of figures -->"
CHARTS = Path(__file__).with_name("charts.py")
DRAWING = ("matplotlib>=3.8,<4",)


def rewrite(result: Mapping[str, Any], document: Path = DOCUMENT) -> None:
    """Put the figures between the marks of a document."""
    document.write_text(renewed(document.read_text(), as_markdown(result)))


def renewed(text: str, section: str) -> str:
    """Return the text with another section between its marks."""
    between = re.compile(re.escape(FIRST_MARK) + ".*?" + re.escape(LAST_MARK), re.DOTALL)
    if len(between.findall(text)) != 1:
        raise BenchError(f"there is not exactly one place between {FIRST_MARK} and {LAST_MARK}")
    return between.sub(lambda _: f"{FIRST_MARK}\n\n{section}\n\n{LAST_MARK}", text)


def drawing() -> Path:
    """Return the Python that has what charts are drawn with."""
    return venv("bench-charts", DRAWING)


def draw(result: Path, folder: Path) -> None:
    """Draw what can be drawn of a result that lies in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(drawing()), "-P", str(CHARTS), str(result), str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**environment(), "MPLBACKEND": "Agg", "MPLCONFIGDIR": os.environ.get("TMPDIR", "/tmp")},
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"the charts cannot be drawn: {done.stderr.strip()[-800:]}")
