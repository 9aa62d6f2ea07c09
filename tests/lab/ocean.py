"""Real clients of the compute API, called from tests: ocean.py and ocean.js, as their registries have them.

Owns their installation and the process each of them lives in. Must not know agents or jobs.
"""

import json
import secrets
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab.npm import installed, node
from tests.lab.venvs import environment, venv

OCEAN_PY = (
    "ocean-lib==3.1.2",
    "eth-account==0.11.3",  # otherwise pip tries twenty versions until it comes to one that fits
    "setuptools<81",  # web3 6 asks for pkg_resources without saying so
)
OCEAN_JS = "@oceanprotocol/lib@8.0.0"
# Half of what npm would fetch stands there for another library, web3 1, that nothing of this one imports.
NPM_OPTIONS = ("--legacy-peer-deps",)
PROCESSES = Path(__file__).parent
GREETING_SECONDS = 60
CALL_SECONDS = 60


class OceanError(Exception):
    """The client raised an error, ended, or did not answer in time; the text says which."""


def ocean_py() -> Path:
    """Return the Python that has ocean.py."""
    return venv("ocean-lib", OCEAN_PY)


def ocean_js() -> Path:
    """Return the folder that has ocean.js, installed when it is not there yet."""
    return installed("ocean-js", OCEAN_JS, *NPM_OPTIONS)


def ocean_py_command() -> list[str]:
    """Say how ocean.py is started."""
    return [str(ocean_py()), "-P", str(PROCESSES / "ocean_py_process.py")]


def ocean_js_command() -> list[str]:
    """Say how ocean.js is started."""
    return [str(node()), str(PROCESSES / "ocean_js_process.mjs"), str(ocean_js())]


class OceanClient:
    """A researcher with a key, at one node, through one of the libraries; one call at a time."""

    def __init__(self, command: Sequence[str], url: str, *, key: str | None = None) -> None:
        self._command = command
        self._greeting = {"url": url, "key": key or f"0x{secrets.token_hex(32)}"}

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
            env=environment(),
            start_new_session=True,  # Ctrl-C is for whoever started us; the pipe's end tells the client
        )
        try:
            # by standard input, so that no process list shows the key
            self._exchange(self._greeting, within=GREETING_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._output):
            if stream is not None:
                stream.close()

    @property
    def output(self) -> str:
        """Return what the client printed and logged so far."""
        self._output.seek(0)
        return self._output.read()

    def call(self, name: str, /, *, within: float = CALL_SECONDS, **arguments: Any) -> Any:
        """Make one of the calls the client's process knows."""
        return self._exchange({"call": name, "arguments": arguments}, within=within)

    def _exchange(self, request: Mapping[str, Any], *, within: float) -> Any:
        name = request.get("call", "the greeting")
        # A client that is ended answers with the end of its output.
        watchdog = threading.Timer(within, self._process.kill)
        watchdog.start()
        try:
            line = self._answer(json.dumps(request))
        finally:
            watchdog.cancel()
        if not line:
            raise OceanError(f"{name}: no answer within {within} s\n{self.output[-1500:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise OceanError(f"{name}: {answer['error']}")
        return answer["result"]

    def _answer(self, request: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()
