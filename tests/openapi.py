"""Writes docs/openapi.json out of the code: `.venv/bin/python -m tests.openapi`."""

import json
from pathlib import Path

from node_agent import __version__
from node_agent.compute.openapi import openapi

FILE = Path(__file__).parents[1] / "docs" / "openapi.json"


def text() -> str:
    """Give the document as it stands in the documentation."""
    return json.dumps(openapi(version=__version__), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
