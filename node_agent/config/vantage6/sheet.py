"""The draft as YAML: settings in their usual order, each with the reasons beside it.

Owns the looks of the file. Must not know what any setting means. What the old file says goes into comments only without
characters that could end a comment.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from node_agent.config.document import Loc, write_scalar
from node_agent.config.shape import Shape
from node_agent.config.vantage6.draft import Draft, Hidden, OwnFile, Remark, Value

_WIDTH = 110
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+")
_LONGEST = 700
_NOT_IN_VARIABLES = re.compile(r"[^A-Z0-9]+")
_REST = "Of the old file, not carried over:"


class Secrets(Protocol):
    """How secrets are written."""

    def hidden(self, loc: Loc, value: Hidden) -> str:
        """Write a value that may hold a secret."""

    def own_file(self, loc: Loc, value: OwnFile) -> tuple[Loc, str]:
        """Write the place of a secret that moves into a file."""


class Shown:
    """For eyes and pipes: no secret is shown, each stands as a variable."""

    def __init__(self, name: str) -> None:
        self._name = name

    def hidden(self, loc: Loc, value: Hidden) -> str:  # noqa: ARG002 - keeps the shape
        """Write the variable that stands for it."""
        words = _NOT_IN_VARIABLES.sub("_", "_".join(map(str, (self._name, *loc))).upper())
        return f'"${{NODE_{words}}}"'

    def own_file(self, loc: Loc, value: OwnFile) -> tuple[Loc, str]:
        """Write the variable that stands for it."""
        return loc, self.hidden(loc, Hidden(value.text))


class Written:
    """For the file itself: a secret stands in a file beside it, or in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hidden(self, loc: Loc, value: Hidden) -> str:  # noqa: ARG002 - keeps the shape
        """Write the value."""
        return write_scalar(value.text)

    def own_file(self, loc: Loc, value: OwnFile) -> tuple[Loc, str]:
        """Write the path of its file."""
        return (*loc[:-1], f"{loc[-1]}_file"), write_scalar(str(self._folder / value.file))


def one_line(text: str) -> str:
    """Give a text without characters that could end a line or steer a terminal."""
    plain = _CONTROL.sub(" ", text).strip()
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}…"


def write_sheet(draft: Draft, secrets: Secrets, heading: Sequence[str]) -> str:
    """Write the configuration with its comments."""
    tree, remarks = _tree(draft, secrets), _placed(draft)
    lines = [*_comment(heading, ""), ""]
    for key in sorted(tree, key=tuple(Shape.model_fields).index):
        lines += _entry((key,), tree[key], remarks, "")
    rest = list(remarks.get((), ()))
    if rest:
        lines += ["", *_comment([_REST], ""), *_remarks(rest, "")]
    return "\n".join(lines) + "\n"


def _tree(draft: Draft, secrets: Secrets) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for loc, value in draft.values.items():
        place, text = _scalar(loc, value, secrets)
        inner: dict[Any, Any] = tree
        for part in place[:-1]:
            inner = inner.setdefault(part, {})
        inner[place[-1]] = (loc, text)
    return tree


def _scalar(loc: Loc, value: Value, secrets: Secrets) -> tuple[Loc, str]:
    if isinstance(value, OwnFile):
        return secrets.own_file(loc, value)
    if isinstance(value, Hidden):
        return loc, secrets.hidden(loc, value)
    return loc, "[]" if isinstance(value, tuple) else write_scalar(value)


def _placed(draft: Draft) -> dict[Loc, list[Remark]]:
    """Put each remark to its setting, or to the nearest block around it."""
    there = {loc[:size] for loc in draft.values for size in range(len(loc) + 1)}
    placed: dict[Loc, list[Remark]] = {}
    for remark in draft.remarks:
        here = remark.here
        while here not in there:
            here = here[:-1]
        placed.setdefault(here, []).append(remark)
    return placed


def _entry(loc: Loc, node: Any, remarks: dict[Loc, list[Remark]], indent: str) -> Iterator[str]:
    if isinstance(node, tuple):
        own, text = node
        yield from _remarks(remarks.get(own, ()), indent)
        yield f"{indent}{write_scalar(str(loc[-1]))}: {text}"
        return
    yield from _remarks(remarks.get(loc, ()), indent)
    yield f"{indent}{write_scalar(str(loc[-1]))}:"
    for key, inner in node.items():
        if isinstance(key, int):
            yield from _item((*loc, key), inner, remarks, f"{indent}  ")
        else:
            yield from _entry((*loc, key), inner, remarks, f"{indent}  ")


def _item(loc: Loc, node: Any, remarks: dict[Loc, list[Remark]], indent: str) -> Iterator[str]:
    yield from _remarks(remarks.get(loc, ()), indent)
    if isinstance(node, tuple):
        yield f"{indent}- {node[1]}"
        return
    lines = (line for key, inner in node.items() for line in _entry((*loc, key), inner, remarks, ""))
    begin = "- "
    for line in lines:
        if begin == "- " and line.startswith("#"):
            # the dash comes with the first setting, not with what is said about it
            yield f"{indent}{line}"
            continue
        yield f"{indent}{begin}{line}"
        begin = "  "


def _remarks(remarks: Iterable[Remark], indent: str) -> Iterator[str]:
    for remark in remarks:
        if remark.text:
            yield from _comment([remark.text], indent)
        yield from (f"{indent}#   {one_line(line)}" for line in remark.lines)


def _comment(texts: Iterable[str], indent: str) -> list[str]:
    wrapped = (
        textwrap.wrap(
            one_line(text),
            _WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for text in texts
    )
    return [line for lines in wrapped for line in lines]
