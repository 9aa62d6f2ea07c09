"""Some runs, some deaths at random moments; `make soak` is the same with many of both."""

import pytest

from tests.lab.engine import EngineError
from tests.lab.soak import Plan, soak
from tests.parts import or_missing

pytestmark = [pytest.mark.engine, pytest.mark.timeout(200)]


def test_random_deaths_of_agent_and_server_lose_no_run_and_repeat_none() -> None:
    with or_missing(EngineError):
        outcome = soak(Plan(runs=30, agent_kills=4, server_kills=1, seed=5))
    print(f"\n{outcome}")
    assert outcome.is_fine, outcome
