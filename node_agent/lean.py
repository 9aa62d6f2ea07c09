"""What a process that runs for months does without.

Owns tricks with imports and with the C library that only save memory. Must not change what anything does.
"""

import ctypes
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module

_M_ARENA_MAX = -8
_ARENAS = 2

_OPTIONAL: Mapping[str, Sequence[str]] = {
    # for coloured tracebacks: 100 modules of 7 MB
    "structlog": ("rich",),
    # for guessing the encoding of text, 3 MB: whatever the agent reads says its own
    "requests": ("charset_normalizer", "chardet"),
}
"""What a library can do without."""


def travel_light() -> None:
    """Begin as a daemon does: with what it needs, and no more. Comes before everything that is loaded."""
    for library, names in _OPTIONAL.items():
        _load_without(library, names)
    share_arenas()


def _load_without(library: str, absent: Sequence[str]) -> None:
    """Load a library as if others were not installed; who needs one of those later loads it as ever."""
    if library in sys.modules:
        return
    missing = [name for name in absent if name not in sys.modules]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        # it may say what is missing; one that cannot do without is loaded again, in full, by who needs it
        with warnings.catch_warnings(), suppress(ImportError):
            warnings.simplefilter("ignore")
            import_module(library)
    finally:
        for name in missing:
            del sys.modules[name]


def share_arenas() -> None:
    """Have all threads take memory from few places: with one for each thread, each keeps what it once needed."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    except (OSError, AttributeError):
        # another C library has no such places
        return
