"""What a process that runs for months does without.

Owns tricks with imports, the garbage collector and the C library that only save memory and time. Must not change what
anything does.
"""

import ctypes
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_M_ARENA_MAX = -8
_ARENAS = 2

_OPTIONAL: Mapping[str, Sequence[str]] = {
    # for coloured tracebacks: 100 modules of 7 MB
    "structlog": ("rich",),
    # for guessing the encoding of text, 3 MB: whatever the agent reads says its own
    "requests": ("charset_normalizer", "chardet"),
}
"""What a library can do without."""

_IN_PARTS: Mapping[str, Mapping[str, str]] = {
    "asyncio": {},
    "docker": {"APIClient": "docker.api"},
    "engineio": {"Client": "engineio.client"},
    "idna": {},
    "socketio": {"Client": "socketio.client"},
    "tarfile": {},
    "werkzeug": {},
}
"""Libraries of which the agent needs a part, and which load all of themselves and of others, together 5 MB: which part has
what they are asked for by name."""


def travel_light() -> None:
    """Begin as a daemon does: with what it needs, and no more. Comes before everything that is loaded."""
    share_arenas()
    _log_without_asyncio()
    for library in _IN_PARTS:
        _load_when_asked(library)
    for library, names in _OPTIONAL.items():
        _load_without(library, names)


def _log_without_asyncio() -> None:
    """Keep `logging` from asking asyncio, with each record, for the name of the current task: it would load all of it."""
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False


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


def _load_when_asked(library: str) -> None:
    """Put an empty module in a library's place: what lies in it can be imported, and the rest comes when asked for."""
    spec = None if library in sys.modules else find_spec(library)
    if spec is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _InParts
    sys.modules[library] = module


class _InParts(ModuleType):
    """A library that has not begun: who asks for a part gets the part, who asks for any other name begins it."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            # so importing asks whether this is a package
            raise AttributeError(name)
        part = _part(self.__name__, name)
        if part is not None:
            return part
        _begin(self)
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


def _part(library: str, name: str) -> Any:
    place = _IN_PARTS[library].get(name)
    # what is not where it was, in another version of the library, is found by beginning it
    with suppress(ImportError):
        return (
            import_module(f"{library}.{name}") if place is None else getattr(import_module(place), name, None)
        )
    return None


_beginning = threading.RLock()
_begun: set[str] = set()


def _begin(module: ModuleType) -> None:
    """Do what importing the library would have done, once."""
    with _beginning:
        if module.__spec__ is None or module.__spec__.loader is None or module.__name__ in _begun:
            return
        _begun.add(module.__name__)
        module.__spec__.loader.exec_module(module)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Load without looking for garbage meanwhile, and never look through it later: what is loaded stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def share_arenas() -> None:
    """Have all threads take memory from few places: with one for each thread, each keeps what it once needed."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    except (OSError, AttributeError):
        # another C library has no such places
        return
