"""Results from small to large; tests/bench/parts/sizes.py has both ways."""

from tests.bench.parts.sizes import measure_results as measure

__all__ = ["measure"]
