"""What may go wrong in a bench, in one place: its own error, and those of the lab it stands on."""

import docker
import requests

from tests.lab.agents import AgentError
from tests.lab.client import ClientError
from tests.lab.engine import EngineError
from tests.lab.images import ImageError
from tests.lab.registry import RegistryError
from tests.lab.systems import RootError
from tests.lab.vantage6 import ServerError
from tests.lab.vantage6_node import NodeError
from tests.lab.venvs import VenvError


class BenchError(Exception):
    """Something that was to be measured did not end well; the text says what became of it."""


NOT_HERE = (
    BenchError,
    AgentError,
    ClientError,
    EngineError,
    ImageError,
    RootError,
    NodeError,
    RegistryError,
    ServerError,
    VenvError,
    docker.errors.DockerException,
    requests.RequestException,
)
"""A part of the lab or of the bench failed: told in one line. Anything else is a mistake of the bench."""
