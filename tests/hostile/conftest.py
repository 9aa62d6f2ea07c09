"""What the attacks share: the fixtures of the tests with a real engine."""

from tests.integration.conftest import place, root, session_machine

__all__ = ["place", "root", "session_machine"]
