"""Virtual environments for other people's software, apart from the project's own, on the Python 3.11 that it wants.

Owns their creation, once, under the lab's folder. Must not know what runs in them. Where Python 3.11 is not this machine's
own, `bin` has launchers of the programs, and the environment itself is the folder `env` beside it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.places import lab_dir, locked, timed
from tests.lab.systems import is_old_python_here, old_python, write_launcher

VANTAGE6_VERSION = "4.15.2"
SERVER_REQUIREMENTS = (
    f"vantage6-server=={VANTAGE6_VERSION}",
    f"vantage6-backend-common=={VANTAGE6_VERSION}",
    "psutil",
    "pyuwsgi==2.0.30.post1",  # what the server runs in when it is not run by its developers
)
CLIENT_REQUIREMENTS = (f"vantage6-client=={VANTAGE6_VERSION}",)
STORE_REQUIREMENTS = (f"vantage6-algorithm-store=={VANTAGE6_VERSION}", "jsonschema==4.21.1")
"""The store, and what it needs that the server does not."""
SCHEMATHESIS_REQUIREMENTS = ("schemathesis==4.32.5",)


class VenvError(Exception):
    """A virtual environment cannot be made; the text says which and why."""


def server_venv() -> Path:
    """Return the Python that has the real vantage6 server."""
    return venv("vantage6-server", SERVER_REQUIREMENTS)


def client_venv() -> Path:
    """Return the Python that has the real vantage6 client."""
    return venv("vantage6-client", CLIENT_REQUIREMENTS)


def schemathesis_venv() -> Path:
    """Return the Python that has schemathesis, which tries an interface by its description."""
    return venv("schemathesis", SCHEMATHESIS_REQUIREMENTS)


def store_packages() -> Path:
    """Return the folder with the real algorithm store, which runs with the server's Python: it needs little else."""
    folder = lab_dir("venvs") / "vantage6-store"
    stamp = folder / ".stamp"
    wanted = "\n".join([sys.version, *STORE_REQUIREMENTS])
    with locked("venv-vantage6-store"):
        if not stamp.exists() or stamp.read_text() != wanted:
            with timed(f"installing {STORE_REQUIREMENTS[0]}"):
                shutil.rmtree(folder, ignore_errors=True)
                pip = [
                    sys.executable,
                    "-m",
                    "pip",
                    "--python",
                    str(old_python()),
                    "install",
                    "-qq",
                    "--no-compile",
                ]
                pip += ["--disable-pip-version-check", "--target", str(folder)]
                _run([*pip, "--no-deps", STORE_REQUIREMENTS[0]])
                _run([*pip, *STORE_REQUIREMENTS[1:]])
            stamp.write_text(wanted)
    return folder


def venv(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of the environment called *name*, made anew when its requirements changed."""
    folder = lab_dir("venvs") / name
    python = folder / "bin" / "python"
    stamp = folder / ".stamp"
    wanted = "\n".join([sys.version, str(folder), *requirements])
    with locked(f"venv-{name}"):
        if not stamp.exists() or stamp.read_text() != wanted:
            with timed(f"installing {requirements[0]}"):
                _make(folder, python, requirements)
            stamp.write_text(wanted)
    return python


def environment_of(python: Path) -> Path:
    """Return the folder of the environment itself, whose `lib` has its packages."""
    folder = python.parents[1]
    return folder if is_old_python_here() else folder / "env"


def environment() -> dict[str, str]:
    """Return what a program in such an environment is started with: nothing of the project's own Python settings."""
    # Where bytecode is not to be written, every start of the server would cost seconds more.
    unwanted = {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def _make(folder: Path, python: Path, requirements: Sequence[str]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    made = environment_of(python)
    _run([str(old_python()), "-m", "venv", "--without-pip", str(made)])
    _write_launchers(made, folder)
    # The pip at hand installs into the new environment; making another pip there costs seconds each time.
    # Compiling everything costs more than compiling what is imported, at the first import.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-compile"]
    _run([*pip, "--disable-pip-version-check", *requirements])
    _write_launchers(made, folder)


def _write_launchers(environment: Path, folder: Path) -> None:
    if environment == folder:
        return
    for program in (environment / "bin").iterdir():
        write_launcher(folder / "bin" / program.name, str(program))


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise VenvError(f"{' '.join(command[1:5])} … failed: {result.stderr.strip()[-800:]}")
