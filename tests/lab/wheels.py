"""Wheels of this project's dependencies, fetched on the host for images whose own pip has no way to a package index.

Owns the folder they lie in. Must not know what they are installed into.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.lab.places import ROOT, lab_dir, locked, timed
from tests.lab.systems import OLD_PYTHON, old_python

# pip and its backend are there too: an image may have neither, and a build without an index fetches nothing.
BUILDING = ("pip", "setuptools>=68", "wheel")

OLD_VERSION = "{}.{}".format(*OLD_PYTHON)


class WheelError(Exception):
    """The wheels cannot be had; the text says why."""


def dependency_wheels(python_version: str) -> Path:
    """Return a folder with a wheel for everything the agent stands on, for that version of Python."""
    wanted = [*BUILDING, *dependencies()]
    folder = lab_dir("cache") / f"service-wheels-{python_version}"
    stamp = folder / ".stamp"
    with locked("service-wheels"):
        if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
            shutil.rmtree(folder, ignore_errors=True)
            with timed(f"fetching the agent's dependencies for Python {python_version}"):
                _download(wanted, python_version, folder)
            stamp.write_text("\n".join(wanted))
    return folder


def dependencies() -> list[str]:
    """Return what the agent stands on with its compute API, as pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["compute"]]


def _download(wanted: list[str], python_version: str, folder: Path) -> None:
    # Conditions of requirements are those of the Python that asks, so it should be the one that will have them.
    asking = ["--python", str(old_python())] if python_version == OLD_VERSION else []
    command = [sys.executable, "-m", "pip", *asking, "download", "-qq", "--disable-pip-version-check"]
    choice = ["--only-binary", ":all:", "--python-version", python_version, "--dest", str(folder)]
    done = subprocess.run(
        [*command, *choice, *wanted], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise WheelError(f"pip download failed: {done.stderr.strip()[-600:]}")
