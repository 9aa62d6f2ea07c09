"""Every setting as it counts: what the file says, defaults filled in, secrets masked.

Must not know what a setting means. No secret file is read and no path is looked at, so it works on any machine.
"""

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from node_agent.config.faults import path_text
from node_agent.config.machine import ANY_MACHINE, Machine
from node_agent.config.settings import load_shape
from node_agent.config.shape import in_words, is_private
from node_agent.domain.secret import Secret

_MASKED: Final = "***"
_CREDENTIALS: Final = re.compile(r"(?<=//)\S*@")
_SECRET_PART: Final = re.compile(r"(?i)((?:pass(?:word|wd)?|pwd|secret|token|key)=)[^&;\s]*")
_PAIRS: Final = {"container_user": ":", "container_users": "-"}
_ADDRESSES: Final = frozenset({"url", "uri", "docker_host"})


def effective_settings(path: Path, machine: Machine = ANY_MACHINE) -> dict[str, Any]:
    """Give every setting of a configuration by its path, in the order of the documentation."""
    return {path_text(loc): value for loc, value in _settings(load_shape(path, machine=machine), ())}


def _settings(section: BaseModel, loc: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], Any]]:
    for key in type(section).model_fields:
        value, here = getattr(section, key), (*loc, key)
        if isinstance(value, BaseModel):
            yield from _settings(value, here)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                yield from _settings(item, (*here, index))
        else:
            yield here, _shown(value, here)


def _shown(value: Any, loc: Sequence[int | str]) -> Any:
    if isinstance(value, Secret):
        return _MASKED
    if isinstance(value, dict):
        return {key: _MASKED if is_private(loc) else item for key, item in value.items()}
    if isinstance(value, str) and loc[-1] in _ADDRESSES:
        return _SECRET_PART.sub(rf"\g<1>{_MASKED}", _CREDENTIALS.sub(f"{_MASKED}@", value))
    return _plain(value, loc)


def _plain(value: Any, loc: Sequence[int | str]) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Enum | Path):
        return str(value)
    if isinstance(value, tuple):
        mark = _PAIRS.get(str(loc[-1]))
        return [_plain(item, loc) for item in value] if mark is None else mark.join(map(str, value))
    if isinstance(value, int):
        words = in_words(loc, value)
        return value if words.isdigit() else words
    return value
