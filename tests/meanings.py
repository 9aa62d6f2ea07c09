"""Writes node_agent/config/meanings.py out of docs/configuration.md: `.venv/bin/python -m tests.meanings`."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "node_agent" / "config" / "meanings.py"
_ROW = re.compile(r"^\| `([^`]+)` \| .*? \| (.*) \|$", re.MULTILINE)
_HEAD = '''"""One sentence for each setting, the same as in docs/configuration.md; a test compares them."""

from collections.abc import Mapping
from types import MappingProxyType

MEANINGS: Mapping[str, str] = MappingProxyType(
    {'''


def documented() -> dict[str, str]:
    """Give the sentence of every setting as the documentation has it, without its links."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    return {path: _plain(meaning) for path, meaning in _ROW.findall(text)}


def _plain(meaning: str) -> str:
    without = re.sub(r" \(\[[^\]]+\]\([^)]+\)\)", "", meaning)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", without).replace("\\|", "|")


def source_of(meanings: Mapping[str, str]) -> str:
    """Write the module."""
    return "\n".join(
        [_HEAD, *(line for path, text in meanings.items() for line in _entry(path, text)), "    }", ")", ""]
    )


def _entry(path: str, text: str) -> Iterator[str]:
    whole = f'        "{path}": {json.dumps(text, ensure_ascii=False)},'
    if len(whole) <= 110:
        yield whole
        return
    yield f'        "{path}": ('
    for part in textwrap.wrap(
        text, 92, break_long_words=False, break_on_hyphens=False, drop_whitespace=False
    ):
        yield f"            {json.dumps(part, ensure_ascii=False)}"
    yield "        ),"


if __name__ == "__main__":
    MODULE.write_text(source_of(documented()), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(MODULE)], check=True)
