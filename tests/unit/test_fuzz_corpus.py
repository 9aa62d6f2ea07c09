"""The corpus of the fuzzer, replayed: what was found once, and what is typical, fails no parser."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_parser_of_outside_data_takes_what_the_fuzzer_tried(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        TARGETS[name](file.read_bytes())
        TARGETS[name](file.read_bytes()[: file.stat().st_size // 2])
