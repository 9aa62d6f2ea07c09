"""The file as a tree: YAML read safely, duplicate keys refused, `${NAME}` replaced from the environment.

Owns the syntax and remembers the line and the written text of every value. Must not know any setting.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Loc = tuple[int | str, ...]

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000
MAX_DEPTH = 24
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[^}]*)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# longer than every word that means something else, such as `false`
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{5,60}\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class DocumentError(Exception):
    """The file cannot be read as one YAML mapping; the text says why."""


class FromEnvironment(str):
    """Text that came from a variable: a number or a truth value may be written in it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What the file says and where; faults show this, so that no variable's content gets into them."""

    tree: dict[str, Any] = field(repr=False)
    lines: Mapping[Loc, int]
    texts: Mapping[Loc, str] = field(repr=False)
    faults: tuple[tuple[Loc, str], ...]

    def line_of(self, loc: Sequence[int | str]) -> int:
        """Give the line of a value, or of the nearest block around it; 0 when unknown."""
        place = tuple(loc)
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines[place] if place else 0

    def text_of(self, loc: Sequence[int | str]) -> str:
        """Give a value as it is written in the file."""
        return self.texts.get(tuple(loc), "")

    def is_scalar(self, loc: Sequence[int | str]) -> bool:
        """Tell whether a single value stands at this place."""
        return tuple(loc) in self.texts


def read_document(content: bytes, environment: Mapping[str, str]) -> Source:
    """Read the bytes of a configuration file; faults of single values are collected, not raised."""
    reader = _Reader(environment)
    tree = reader.read(_compose(content), ())
    if not isinstance(tree, dict):
        raise DocumentError("the file must hold settings (`key: value`)")
    return Source(tree, reader.lines, reader.texts, tuple(reader.faults))


def read_verbatim(content: bytes) -> Source:
    """Read a file of another program, to which `${` means nothing."""
    reader = _Verbatim({})
    tree = reader.read(_compose(content), ())
    if not isinstance(tree, dict):
        raise DocumentError("the file must hold settings (`key: value`)")
    return Source(tree, reader.lines, reader.texts, tuple(reader.faults))


def write_scalar(value: str | float | bool) -> str:  # noqa: FBT001 - a truth value is one of the kinds of value
    """Write one value so that reading it gives it back, on one line."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _WORD.match(value):
        return value
    text = value.replace("${", "$${")
    style = '"' if _CONTROL.search(text) else None
    listed: str = yaml.safe_dump(
        [text], default_flow_style=True, allow_unicode=True, width=math.inf, default_style=style
    )
    return listed.strip().removeprefix("[").removesuffix("]")


def _compose(content: bytes) -> yaml.Node:
    if len(content) > MAX_BYTES:
        raise DocumentError(f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        node = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise DocumentError("the file is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise DocumentError(_yaml_text(error, content.decode())) from error
    except RecursionError as error:
        raise DocumentError("the file is nested too deeply") from error
    if node is None:
        raise DocumentError("the file is empty")
    return node


def _yaml_text(error: yaml.YAMLError, text: str) -> str:
    # the problem alone: the library's full text repeats the line, which may hold a secret
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is not valid YAML"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(problem)
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    advice = "; between { } a value with ${…} needs quotes" if "${" in line else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{advice}"


class _Reader:
    """Walks the node tree once."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._scalars = yaml.SafeLoader("")
        self._count = 0
        self.lines: dict[Loc, int] = {}
        self.texts: dict[Loc, str] = {}
        self.faults: list[tuple[Loc, str]] = []

    def read(self, node: yaml.Node, loc: Loc) -> Any:
        self._count += 1
        # an alias may make a small file large, or endless
        if self._count > MAX_VALUES or len(loc) > MAX_DEPTH:
            raise DocumentError("the file holds too many values, or is nested too deeply")
        self.lines.setdefault(loc, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*loc, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            place = (*loc, key)
            if key in found:
                line = key_node.start_mark.line + 1
                self.faults.append((place, f"stands twice in the same block, again in line {line}"))
                continue
            self.lines[place] = key_node.start_mark.line + 1
            found[key] = self.read(value_node, place)
        # a key with nothing behind it is as if it was not there
        return {key: value for key, value in found.items() if value is not None}

    def _scalar(self, node: yaml.Node, loc: Loc) -> Any:
        self.texts[loc] = node.value
        try:
            value = self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.faults.append((loc, "cannot be read; put it in quotes"))
            return ""
        return self._substitute(value, loc) if isinstance(value, str) else value

    def _substitute(self, text: str, loc: Loc) -> str:
        if "${" not in text:
            return text
        return FromEnvironment(_VARIABLE.sub(lambda match: self._variable(match, loc), text))

    def _variable(self, match: re.Match[str], loc: Loc) -> str:
        name = match["name"]
        if name is None:
            return "${"
        if not _NAME.match(name):
            self.faults.append((loc, "has a ${…} that is no variable name; write $${ for the characters ${"))
        elif name not in self._environment:
            self.faults.append((loc, f"asks for the environment variable {name}, which is not set"))
        return self._environment.get(name, "")


class _Verbatim(_Reader):
    """Leaves every text as it is."""

    def _substitute(self, text: str, loc: Loc) -> str:  # noqa: ARG002 - keeps the shape of what it replaces
        return text
