"""JSON whose long strings lie in files: compared with the json module, however the pieces are cut."""

import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest

from node_agent.payload.longtext import (
    ITEMS_LIMIT,
    BadJson,
    JsonTooLarge,
    LongText,
    spool_json,
    written_json,
)

THRESHOLD = 40
ALPHABET = [
    "a",
    "Z",
    "=",
    '"',
    "\\",
    "/",
    "\n",
    "\t",
    "\x00",
    "\x7f",
    "ä",
    "€",
    "🎉",
    "\u2028",
    "u",
    "{",
    "]",
]
SEEDS = range(60)


def cut(document: bytes, chance: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(document):
        size = chance.choice([1, 1, 2, 3, 7, 50, 1000])
        yield document[at : at + size]
        at += size


def in_memory(tree: object) -> object:
    """Give the tree with every long text read back."""
    if isinstance(tree, LongText):
        content = b"".join(tree)
        assert len(content) == tree.length
        return content.decode()
    if isinstance(tree, list):
        return [in_memory(item) for item in tree]
    if isinstance(tree, dict):
        return {name: in_memory(value) for name, value in tree.items()}
    return tree


def long_texts(tree: object) -> list[LongText]:
    if isinstance(tree, LongText):
        return [tree]
    inner: Iterable[object] = ()
    if isinstance(tree, list | dict):
        inner = tree.values() if isinstance(tree, dict) else tree
    return [text for item in inner for text in long_texts(item)]


def has_long_name(tree: object) -> bool:
    if isinstance(tree, dict):
        names = any(len(json.dumps(name)) > THRESHOLD for name in tree)
        return names or any(map(has_long_name, tree.values()))
    return isinstance(tree, list) and any(map(has_long_name, tree))


def has_half_a_character(tree: object) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in json.dumps(tree, ensure_ascii=False))


def random_text(chance: random.Random) -> str:
    longest = chance.choice([0, 3, 30, 60, 500])
    return "".join(chance.choices(ALPHABET, k=chance.randint(0, longest)))


def random_tree(chance: random.Random, depth: int = 0) -> object:
    kind = chance.choice(["text", "text", "number", "constant"] + ["list", "dict"] * (depth < 4))
    if kind == "text":
        return random_text(chance)
    if kind == "number":
        return chance.choice([0, -1, 1.5, 1e300, 12345678901234567890])
    if kind == "constant":
        return chance.choice([None, True, False])
    size = chance.randint(0, 5)
    if kind == "list":
        return [random_tree(chance, depth + 1) for _ in range(size)]
    return {random_text(chance)[:3]: random_tree(chance, depth + 1) for _ in range(size)}


def random_document(chance: random.Random) -> bytes:
    ascii_only, spaces = chance.choice([(True, None), (False, None), (True, 2), (False, 1)])
    return json.dumps(random_tree(chance), ensure_ascii=ascii_only, indent=spaces).encode()


@pytest.mark.parametrize("seed", SEEDS)
def test_any_tree_cut_anywhere_comes_back_as_the_json_module_reads_it(tmp_path, seed):
    chance = random.Random(seed)
    document = random_document(chance)
    tree = spool_json(cut(document, chance), tmp_path, threshold=THRESHOLD, limit=len(document))
    assert in_memory(tree) == json.loads(document)
    assert sorted(tmp_path.iterdir()) == sorted(text.path for text in long_texts(tree))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_read_is_written_as_the_same_json(tmp_path, seed):
    chance = random.Random(seed)
    document = random_document(chance)
    tree = spool_json([document], tmp_path, threshold=THRESHOLD, limit=len(document))
    written = written_json(tree)
    content = b"".join(written)
    assert json.loads(content) == json.loads(document)
    assert written.length == len(content)
    assert b"".join(written) == content


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_text_is_read_as_the_json_module_reads_it_or_refused_as_it_refuses(tmp_path, seed):
    chance = random.Random(seed)
    for _ in range(20):
        document = bytearray(random_document(chance))
        for _ in range(chance.randint(1, 3)):
            at = chance.randint(0, len(document))
            document[at : at + chance.randint(0, 3)] = chance.choice(
                [b"", b'"', b"\\", b"\\u", b"\xff", b"{", b"]", b"\n", b"0"]
            )
        try:
            expected = json.loads(document.decode())
        except ValueError:
            with pytest.raises(BadJson):
                spool_json(cut(bytes(document), chance), tmp_path, threshold=THRESHOLD, limit=100_000)
        else:
            if has_long_name(expected) or has_half_a_character(expected):
                continue
            tree = spool_json(cut(bytes(document), chance), tmp_path, threshold=THRESHOLD, limit=100_000)
            assert in_memory(tree) == expected


def test_a_string_up_to_the_threshold_stays_in_memory_and_a_longer_one_does_not(tmp_path):
    document = json.dumps(["a" * THRESHOLD, "b" * (THRESHOLD + 1)]).encode()
    short, long = spool_json([document], tmp_path, threshold=THRESHOLD, limit=1000)
    assert short == "a" * THRESHOLD
    assert (long.length, long.path.read_bytes()) == (THRESHOLD + 1, b"b" * (THRESHOLD + 1))


def test_the_files_are_for_this_user_only(tmp_path):
    text = spool_json([b'"' + b"a" * 100 + b'"'], tmp_path, threshold=10, limit=1000)
    assert text.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "escapes", ["\\\\" * 50, "\\ud83c\\udf89" * 9, "\\u00e4\\\\u12" * 9, '\\"' * 50, "\\\\\\u0041" * 9]
)
@pytest.mark.parametrize("size", range(1, 14))
def test_an_escape_may_be_cut_anywhere(tmp_path, escapes, size):
    document = f'["x{escapes}"]'.encode()
    pieces = [document[at : at + size] for at in range(0, len(document), size)]
    (text,) = spool_json(pieces, tmp_path, threshold=THRESHOLD, limit=1000)
    assert b"".join(text).decode() == json.loads(document)[0]


LONG = "a" * (THRESHOLD + 1)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        '["',
        f'["{LONG}',
        f'["{LONG}\\',
        f'["{LONG}\\"]',
        f'["{LONG}"',
        f'["{LONG}\\u12"]',
        f'["{LONG}\\u12zz"]',
        f'["{LONG}\\x"]',
        f'["{LONG}\n"]',
        f'["{LONG}\\ud83d"]',
        f'["{LONG}\\udf89\\ud83d"]',
        f'["{LONG}\\ud83dx"]',
        f'{{"{LONG}": 1}}',
        f'"{LONG}" "{LONG}"',
        f'"{LONG}{LONG}"x',
        f'NaN"{LONG}"',
        f'[NaN, "{LONG}"]',
        f'["{LONG}", NaN]',
        "[NaN]",
        "[Infinity]",
        f'[-Infinity, "{LONG}"]',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[1" + "0" * 5000 + "]",
        "\ufeff[]",
    ],
    ids=lambda document: document[:20] or "nothing",
)
def test_what_is_no_json_is_one_kind_of_error(tmp_path, document):
    with pytest.raises(BadJson):
        spool_json([document.encode()], tmp_path, threshold=THRESHOLD, limit=1_000_000)


@pytest.mark.parametrize("document", [b'["\xff"]', b'["' + LONG.encode() + b'\xe2\x82"]', b"[\xff]"])
def test_text_that_is_not_utf8_is_refused(tmp_path, document):
    with pytest.raises(BadJson):
        spool_json([document], tmp_path, threshold=THRESHOLD, limit=1000)


def endless(piece: bytes) -> Iterator[bytes]:
    yield b"["
    while True:
        yield piece


@pytest.mark.parametrize("piece", [b"a" * 100, b'"a",' * 30, b'"' + b"a" * 100 + b'",', b" "])
def test_more_bytes_than_the_limit_are_not_read(tmp_path, piece):
    with pytest.raises(JsonTooLarge):
        spool_json(endless(piece), tmp_path, threshold=THRESHOLD, limit=10_000)


@pytest.mark.parametrize("piece", [b'"' + b"a" * 30 + b'",', b" " * 100])
def test_a_skeleton_over_its_bound_is_refused(tmp_path, piece):
    with pytest.raises(JsonTooLarge):
        spool_json(endless(piece), tmp_path, threshold=THRESHOLD, limit=1 << 30, skeleton=10_000)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"1,", b"["])
def test_more_small_items_than_are_worth_their_memory_are_refused(tmp_path, piece):
    with pytest.raises(JsonTooLarge):
        spool_json(endless(piece * 1000), tmp_path, limit=1 << 30)
    assert ITEMS_LIMIT < 1_000_000


def test_commas_within_a_text_are_no_items(tmp_path):
    document = json.dumps(["," * 60_000] * 10).encode()
    assert spool_json([document], tmp_path, limit=1 << 20) == json.loads(document)


def test_an_error_of_the_source_comes_through(tmp_path):
    def broken():
        yield b'["' + b"a" * 100
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        spool_json(broken(), tmp_path, threshold=10, limit=1000)


class Repeated:
    """Chunks that are made as they are read."""

    length = 30

    def __iter__(self):
        return iter([b"0123456789"] * 3)


def test_chunks_are_written_as_the_inside_of_their_string():
    tree = {"organizations": [{"id": 1, "input": Repeated()}, {"id": 2, "input": "long-text-0-"}]}
    written = written_json(tree)
    content = b"".join(written)
    assert json.loads(content)["organizations"] == [
        {"id": 1, "input": "0123456789" * 3},
        {"id": 2, "input": "long-text-0-"},
    ]
    assert written.length == len(content)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}])
def test_what_has_no_form_in_json_is_refused(value):
    with pytest.raises(TypeError):
        written_json({"a": value})


def test_half_a_character_in_a_short_text_survives_as_an_escape(tmp_path):
    tree = spool_json([b'["\\ud83d"]'], tmp_path, limit=100)
    assert json.loads(b"".join(written_json(tree))) == ["\ud83d"]


def test_memory_does_not_grow_with_a_long_text(tmp_path):
    size = 32 << 20
    piece = b"QUJD" * (16 << 10)

    def pieces():
        yield b'{"result": "'
        for _ in range(size // len(piece)):
            yield piece
        yield b'"}'

    tracemalloc.start()
    try:
        tree = spool_json(pieces(), tmp_path, limit=2 * size)
        length = sum(map(len, written_json(tree)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == size + len('{"result":""}')
    assert peak < 4 << 20


def test_a_tree_that_nests_too_deeply_is_refused_when_it_is_written() -> None:
    tree: list[object] = []
    for _ in range(300_000):
        tree = [tree]
    with pytest.raises(BadJson, match="nested too deeply"):
        written_json(tree)
