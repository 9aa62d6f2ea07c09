"""What is wrong with a configuration, in sentences for the operator.

Owns how a fault looks and the suggestions. Must not know what any setting means. A fault shows what the file
says (never what an environment variable holds), and nothing at all where a secret may stand.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from node_agent.config.document import Source
from node_agent.config.shape import fields_at, in_words, is_private, setting_paths
from node_agent.config.values import suggest
from node_agent.config.vantage6.keys import hint

_WRONG_KIND = {
    "string_type": "text",
    "int_type": "a whole number, without quotes",
    "int_from_float": "a whole number",
    "float_type": "a number, without quotes",
    "finite_number": "a number",
    "bool_type": "true or false, without quotes",
    "tuple_type": "a list (lines that begin with `- `)",
    "list_type": "a list (lines that begin with `- `)",
    "dict_type": "a block of settings (`key: value`)",
    "model_type": "a block of settings (`key: value`)",
    "model_attributes_type": "a block of settings (`key: value`)",
    "none_required": "null; it is not available in this version: leave it out",
}
_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_SHOWN = 80


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing to correct; faults sort in the order of the file."""

    line: int
    path: str
    text: str

    def __str__(self) -> str:
        place = f"{self.path} (line {self.line})" if self.line else self.path
        return f"{place}: {self.text}"


def translate(errors: Iterable[ErrorDetails], source: Source) -> list[Fault]:
    """Put what the models found into words."""
    return [_fault(error, source) for error in errors]


def path_text(loc: Sequence[int | str]) -> str:
    """Write a place in the file as `databases[1].type`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _fault(error: ErrorDetails, source: Source) -> Fault:
    loc = error["loc"]
    return Fault(source.line_of(loc), path_text(loc), _text(error, source))


def _text(error: ErrorDetails, source: Source) -> str:
    kind, loc = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return f"is not a setting{_suggest_setting(loc)}"
    if kind == "missing":
        return "is missing; it has no default"
    return f"{_shown(loc, source)} {_predicate(error, source)}"


def _predicate(error: ErrorDetails, source: Source) -> str:
    kind = error["type"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {in_words(error['loc'], error['ctx'][key])}"
    if kind == "string_type" and source.is_scalar(error["loc"]):
        return "is not text for YAML; put it in quotes"
    if kind in _WRONG_KIND:
        return f"must be {_WRONG_KIND[kind]}"
    return f"is not accepted ({error['msg']})"


def _shown(loc: Sequence[int | str], source: Source) -> str:
    if is_private(loc) or not source.is_scalar(loc):
        return "the value"
    text = source.text_of(loc)
    return f'"{text[:_SHOWN]}…"' if len(text) > _SHOWN else f'"{text}"'


def _suggest_setting(loc: Sequence[int | str]) -> str:
    key: Any = loc[-1]
    from_vantage6 = hint(loc)
    if from_vantage6 is not None:
        return f"; {from_vantage6}"
    nearby = suggest(key, fields_at(loc[:-1]))
    if nearby:
        return nearby
    elsewhere = [path for path in setting_paths() if path.rpartition(".")[2] == key]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else f" (here: {', '.join(fields_at(loc[:-1]))})"
