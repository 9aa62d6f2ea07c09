"""What the attacks share: the fixtures of the tests with a real engine."""

from tests.integration.conftest import root

__all__ = ["root"]
