from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.interop.stage import NOT_HERE, Stage, eventually, stage
from tests.lab.agents import AgentProcess
from tests.parts import or_missing


@pytest.fixture(scope="session")
def real() -> Iterator[Stage]:
    """The real server, client and engine, for the whole session."""
    with or_missing(*NOT_HERE):
        set_up = stage()
        made = set_up.__enter__()
    yield made
    set_up.__exit__(None, None, None)


@pytest.fixture(scope="session")
def leaves_nothing() -> Callable[[AgentProcess], None]:
    """Check that an agent whose runs have all ended keeps nothing of them."""

    def check(agent: AgentProcess) -> None:
        def everything_gone() -> bool:
            return not agent.containers() and not list((agent.state_dir / "runs").iterdir())

        eventually(everything_gone, within=20, what=f"no container or run directory; {remains(agent)}")
        assert {run["state"] for run in agent.runs()} <= {"removed"}

    return check


def remains(agent: AgentProcess) -> list[Any]:
    return [*agent.containers(), *(agent.state_dir / "runs").iterdir()]
