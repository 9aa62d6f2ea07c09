"""The configuration as a JSON Schema (draft 2020-12), for editors and for programs that write configurations.

Derived from the shape, so that no setting is missing. It knows forms, not the machine: that a file exists, that two
labels differ, only loading finds out. Must not know what a setting is for; the sentences stand in meanings.py.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from node_agent.config.meanings import MEANINGS
from node_agent.config.shape import (
    RegistrySection,
    ServerSection,
    ServiceSection,
    Shape,
    in_words,
    notes_of,
    setting_paths,
)
from node_agent.config.values import parse_duration, parse_percent, parse_size
from node_agent.domain.secret import Secret

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_IMAGE: Final = {"pattern": r"^[A-Za-z0-9*?\[\]!][A-Za-z0-9._\-/:*?\[\]!]*(@sha256:[0-9a-f]{64})?$"}
_WORDS: Final = {"type": "string", "pattern": "^[^\\^$()|+\\\\{}]*$"}
_PATH: Final = {"type": "string", "pattern": "^/"}
_NAME: Final = {"type": "string", "minLength": 1}
PIECES: Final[Mapping[str, Mapping[str, Any]]] = {
    "parse_size": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]{1,6})?\s?([kKMGT]i?B|B)$"},
    "parse_duration": {
        "type": "string",
        "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
        "minLength": 2,
    },
    "parse_percent": {"type": "string", "pattern": r"^[0-9]{1,3}\s?%$"},
    "parse_number": {},
    "choose": {},
    "_as_tuple": {},
    "_absolute": _PATH,
    "_url": {"pattern": "^https?://[^\\s\\\\?#]+$"},
    "image_pattern": _IMAGE,
    "image_glob": {"pattern": r"^[A-Za-z0-9*?\[\]!][A-Za-z0-9._\-/:*?\[\]!]*$"},
    "store_pattern": {"pattern": r"^(\*|https?://[^\s]+)$"},
    "word_pattern": _WORDS,
    "no_regex": {},
    "no_repeats": {"uniqueItems": True},
    "who": {"type": ["integer", "string"]},
    "_image": {"pattern": "^[A-Za-z0-9]"},
    "_secret": _NAME,
    "_secret_file": _NAME,
    "_private_path": _NAME,
    "_private": {},
    "_ids": {"type": "string", "pattern": "^[0-9]{1,10}-[0-9]{1,10}$"},
    "_user": {"type": "string", "pattern": "^[0-9]{1,10}:[0-9]{1,10}$"},
    "_subnet": {"pattern": r"^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+/[0-9]+$"},
    "_engine_address": {"pattern": r"^(unix:///|tcp://|https?://)[^\s@]+$"},
    "_capability": {"pattern": "^[A-Za-z_]+$"},
    "_egress": {"pattern": r"^[^\s:]+:[0-9]+(-[0-9]+)?$"},
    "_service_name": {"pattern": r"^[a-z0-9]([a-z0-9.\-]{0,61}[a-z0-9])?$"},
    "_container": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"},
    "_host": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9.\-]*$"},
    "_account": {"pattern": r"^[A-Za-z0-9_][A-Za-z0-9_.@\-]*$"},
    "_target": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9.\-]*:[0-9]{1,5}$"},
    "_host_key": {"pattern": r"^(SHA256:[A-Za-z0-9+/]{43}=?|[a-z0-9@.\-]+ [A-Za-z0-9+/]+=*)"},
    "_variables": {"propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}},
    "_hosts": {"propertyNames": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9.\-]*$"}},
    "_off_is_a_word": {"enum": ["off", "errors", "full", False]},
    "_consumer": {"pattern": r"^(\*|0x[0-9a-fA-F]{40})$"},
    "_did": {"pattern": "^did:op:[0-9a-f]{64}$"},
    "_did_or_everybody": {"pattern": r"^(\*|did:op:[0-9a-f]{64})$"},
    "_image_digest": {"pattern": "^sha256:[0-9a-f]{64}$"},
    "_checksum": {"pattern": "^[0-9a-fA-F]{64}$"},
    "_short_name": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,62}$"},
    "_listen": {"pattern": r"^([0-9.]+|localhost|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"},
    "_callback": {},
    "_code": {},
    "_certificate": {},
    "_service": {"type": ["integer", "string"]},
}
"""What each function that reads a kind of value means for a schema; an empty one says nothing about the form."""
_FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "name": {"pattern": "^[a-z0-9][a-z0-9-]{0,40}$"},
    "databases[].label": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,62}$"},
    "images.registries[].host": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9.\-]*(:[0-9]{1,5})?$"},
}
"""Forms that belong to one setting alone."""
_ONE_OF_TWO: Final[Mapping[type[BaseModel], tuple[str, str]]] = {
    ServerSection: ("api_key", "api_key_file"),
    RegistrySection: ("password", "password_file"),
    ServiceSection: ("container", "tunnel"),
}
_BOUNDS: Final = {
    "Ge": ("minimum", "ge"),
    "Gt": ("exclusiveMinimum", "gt"),
    "Le": ("maximum", "le"),
    "Lt": ("exclusiveMaximum", "lt"),
    "MinLen": ("minLength", "min_length"),
    "MaxLen": ("maxLength", "max_length"),
}
_WITH_UNITS: Final = frozenset({"parse_size", "parse_duration", "parse_percent"})
_PLAIN: Final[Mapping[Any, Mapping[str, Any]]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    Path: {"type": "string"},
    Secret: {"type": "string"},
    NoneType: {"type": "null"},
}
_VARIABLE: Final = {
    "description": "A value from the environment.",
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}",
}


def json_schema() -> dict[str, Any]:
    """Give the schema of the whole file."""
    return {
        "$schema": DRAFT,
        "title": "Configuration of node-agent",
        **_section(Shape, ""),
        "$defs": {"variable": _VARIABLE},
    }


def readers(section: type[BaseModel] = Shape) -> set[str]:
    """Name every function that reads a kind of value."""
    found: set[str] = set()
    for field in section.model_fields.values():
        found |= _readers_in(field.annotation, field.metadata)
    return found


def _readers_in(annotation: Any, metadata: Sequence[Any]) -> set[str]:
    own = {item.func.__name__ for item in metadata if hasattr(item, "func")}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return own | readers(annotation)
    inner = (_apart(part) for part in get_args(annotation) if part is not ...)
    return own.union(*(_readers_in(part, notes) for part, notes in inner))


def _apart(annotation: Any) -> tuple[Any, Sequence[Any]]:
    if get_origin(annotation) is Annotated:
        kind, *notes = get_args(annotation)
        return kind, notes
    return annotation, ()


def _section(section: type[BaseModel], path: str) -> dict[str, Any]:
    properties = {key: _setting(key, field, path) for key, field in section.model_fields.items()}
    required = [key for key, field in section.model_fields.items() if field.is_required()]
    schema: dict[str, Any] = {
        "type": "object",
        "description": (section.__doc__ or "").strip(),
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    if section in _ONE_OF_TWO:
        schema["oneOf"] = [{"required": [key]} for key in _ONE_OF_TWO[section]]
    return schema


def _setting(key: str, field: FieldInfo, path: str) -> dict[str, Any]:
    here = f"{path}{key}"
    form = {**_form(field.annotation, field.metadata, here), **_FIELDS.get(here, {})}
    setting: dict[str, Any] = _with_alternatives(form, field)
    if here in MEANINGS:
        setting["description"] = " ".join(filter(None, (MEANINGS[here], _bounds_in_words(here, field))))
    default = _default(field, here)
    if default is not None:
        setting["default"] = default
    return setting


def _with_alternatives(form: dict[str, Any], field: FieldInfo) -> dict[str, Any]:
    choices = [form]
    if form.get("type") not in ("object", "array") and form != {"type": "string"}:
        choices.append({"$ref": "#/$defs/variable"})
    # a setting with nothing behind it is as if it was not there
    if not field.is_required():
        choices.append({"type": "null"})
    return {"anyOf": choices} if len(choices) > 1 else dict(form)


def _form(annotation: Any, metadata: Sequence[Any], path: str) -> dict[str, Any]:
    form = _kind(annotation, path)
    names = [item.func.__name__ for item in metadata if hasattr(item, "func")]
    for item in metadata:
        if _word(item) in _BOUNDS and not _WITH_UNITS & set(names):
            word, attribute = _BOUNDS[_word(item)]
            form[word] = getattr(item, attribute)
    for name in names:
        form |= PIECES.get(name, {})
    return form


def _kind(annotation: Any, path: str) -> dict[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _section(annotation, f"{path}.")
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return {"enum": [str(word) for word in annotation]}
    if annotation in _PLAIN:
        return dict(_PLAIN[annotation])
    return _composed(annotation, path)


def _composed(annotation: Any, path: str) -> dict[str, Any]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        given = [part for part in parts if part is not NoneType]
        return _form(*_apart(given[0]), path) if len(given) == 1 else {}
    if origin is tuple:
        return {"type": "array", "items": _form(*_apart(parts[0]), f"{path}[]")}
    if origin is dict:
        return {"type": "object", "additionalProperties": _form(*_apart(parts[1]), path)}
    return {}


def _word(item: Any) -> str:
    return type(item).__name__


def _bounds_in_words(path: str, field: FieldInfo) -> str:
    """Say bounds that a schema cannot compare: `16MiB` is text."""
    notes = notes_of(field)
    if not {parse_size, parse_duration, parse_percent} & {getattr(item, "func", None) for item in notes}:
        return ""
    bounds = {_word(item): item for item in notes}
    least, most = bounds.get("Ge"), bounds.get("Le")
    if least is None or most is None:
        return ""
    setting = [path.rpartition(".")[2]]
    return f"From {in_words(setting, least.ge)} to {in_words(setting, most.le)}."


def _default(field: FieldInfo, path: str) -> Any:
    value = field.default
    if field.is_required() or value is None or isinstance(value, BaseModel):
        return None
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    words = in_words([path.rpartition(".")[2]], value)
    return words if isinstance(value, int) and not words.isdigit() and not isinstance(value, bool) else value


def undescribed() -> set[str]:
    """Name the settings without a sentence."""
    return set(setting_paths()) - MEANINGS.keys()
