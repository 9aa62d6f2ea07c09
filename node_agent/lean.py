"""What a process that runs for months does without.

Owns tricks with imports and with the C library that only save memory. Must not change what anything does.
"""

import ctypes
import sys

_M_ARENA_MAX = -8
_ARENAS = 2


def leave_rich_out() -> None:
    """Load structlog as if rich was not installed: for coloured tracebacks it would load 100 modules of 7 MB."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


def share_arenas() -> None:
    """Have all threads take memory from few places: with one for each thread, each keeps what it once needed."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    except (OSError, AttributeError):
        # another C library has no such places
        return
