import pytest
from docker.errors import APIError

from node_agent.errors import StartFailed
from node_agent.runtime.engine import _start_failure


def failure(said: str) -> str:
    return str(_start_failure("started", APIError("500 Server Error", explanation=said)))


@pytest.mark.parametrize(
    "said",
    [
        'exec: "/root/app/go": stat /root/app/go: permission denied: unknown',
        'chdir to cwd ("/root/app") set in config.json failed: Permission denied',
    ],
)
def test_a_program_that_a_user_without_rights_may_not_see_is_told_apart(said: str) -> None:
    told = failure(said)
    assert said.removesuffix(": unknown") in told
    assert "hardening.relax" in told


def test_a_program_that_is_not_there_has_nothing_to_do_with_rights() -> None:
    told = failure('exec: "/app/go": stat /app/go: no such file or directory')
    assert "hardening.relax" not in told
    assert isinstance(_start_failure("started", APIError("500", explanation="no such file")), StartFailed)
