"""The contract of the port Runtime, held against an engine without root; what needs a registry is left out."""

import os

import pytest

from node_agent.domain.container import ContainerReport
from node_agent.domain.ports import Runtime
from node_agent.domain.run import ContainerId
from tests.contract import test_runtime_contract as contract
from tests.contract.test_runtime_contract import Stage
from tests.integration.machine import USER, Machine

# The registry of the tests listens on this side's loopback, where the engine does not see it.
NEED_A_REGISTRY = {
    "test_an_image_nobody_pulled_is_not_found",
    "test_a_pulled_image_is_found_again_with_the_digest_the_registry_named",
    "test_an_image_is_pulled_by_its_digest",
    "test_an_image_that_does_not_exist_is_missing",
    "test_a_pull_nobody_wants_any_more_is_called_off",
    "test_a_pull_tells_how_far_it_is",
}
# These ask for another limit of processes, and on cgroup v1 an engine without root is not asked for any.
NEED_LIMITS = {
    "test_a_container_left_under_other_settings_is_made_anew",
    "test_a_container_that_already_ran_under_other_settings_is_refused",
}
# Podman stamps what a container writes with whole seconds only.
NEED_FINE_STAMPS = {"test_a_log_is_followed_on_behind_an_entry_without_repeating_it"}
LEFT_OUT = NEED_A_REGISTRY | NEED_LIMITS
if os.environ["ROOTLESS_ENGINE"] == "podman":
    LEFT_OUT |= NEED_FINE_STAMPS
globals().update(
    {name: test for name, test in vars(contract).items() if name.startswith("test_") and name not in LEFT_OUT}
)


class RootlessStage:
    offered = missing = digest = ""

    def __init__(self, place: Machine) -> None:
        self._place = place
        self.runtime: Runtime = place.engine
        self.name = place.name

    def local_image(self) -> str:
        return self._place.image_id

    def user(self) -> tuple[int, int]:
        return USER

    def ended(self, container: ContainerId) -> ContainerReport:
        return self._place.ended(container)


@pytest.fixture
def stage(place: Machine) -> Stage:
    return RootlessStage(place)
