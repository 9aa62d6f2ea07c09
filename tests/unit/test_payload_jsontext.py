"""What is JSON is told as the json module tells it, wherever the text is cut."""

import json
import random
from collections.abc import Iterator

import pytest

from node_agent.payload.jsontext import is_json

RIGHT = [
    "0",
    "-12.5e+3",
    " true\n",
    "null",
    '""',
    '"a\\u00e9\\n\\\\\\""',
    "[]",
    " [ 1 , [ ] , { } ]",
    '{"a": [1, 2.0, false], "b": {"c": "ü€🎉"}}',
    "1" * 4000,
    "[" * 900 + "]" * 900,
]
WRONG = [
    "",
    " ",
    "1 2",
    "01",
    "1.",
    "+1",
    "tru",
    "truex",
    "NaN",
    "-Infinity",
    "[1,]",
    "[,1]",
    "[1 2]",
    "[1",
    "1]",
    "[1}",
    '{"a"}',
    '{"a":}',
    '{"a":1,}',
    "{1:2}",
    '{"a" 1}',
    '{"a":1 "b":2}',
    '"open',
    '"tab\there"',
    '"\\x"',
    '"\\u12g4"',
    '"\\u12',
    "'a'",
    "1,2",
    ":",
    "\ufeff1",
    "hello",
]


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("text", RIGHT)
def test_json_is_known_wherever_it_is_cut(text: str, size: int) -> None:
    json.loads(text)
    assert is_json(pieces(text.encode(), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_json_is_known_wherever_it_is_cut(text: str, size: int) -> None:
    assert not is_json(pieces(text.encode(), size))


def test_damaged_json_is_judged_as_the_json_module_judges_it() -> None:
    chance = random.Random(7)
    text = json.dumps(
        {"method": "m", "kwargs": {"a": [1, -2.5e3, None, True], "é": 'x\\"\n\t🎉'}, "e": [[], {}]}
    )
    for _ in range(1500):
        at = chance.randrange(len(text))
        damaged = text[:at] + chance.choice('{}[]",:0e\\u ') + text[at + chance.randrange(3) :]
        try:
            json.loads(damaged)
        except ValueError:
            right = False
        else:
            right = True
        assert is_json(pieces(damaged.encode(), chance.randrange(1, 9))) is right, damaged


@pytest.mark.parametrize("content", [b'"\xff"', b'"\xc3', b'"\xed\xa0\x80"'])
def test_what_is_not_utf_8_is_no_json(content: bytes) -> None:
    assert not is_json([content])


@pytest.mark.parametrize("text", ["[" * 1001 + "]" * 1001, "1" * 5000, "1" * 5000 + " ", "[" * 10_000_000])
def test_what_only_an_attacker_writes_is_no_json(text: str) -> None:
    assert not is_json(pieces(text.encode(), 1000))
