"""Patterns are compared whole, and no wildcard leaves its part of a name."""

import pytest

from node_agent.domain.patterns import (
    image_is_meant,
    image_matches,
    is_open,
    is_same_image,
    is_store_url,
    shown,
    store_matches,
    word_matches,
)

APPROVED = "registry.example.org/approved/*"
STORE = "https://store.example.org/api"


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (APPROVED, "registry.example.org/approved/average"),
        (APPROVED, "registry.example.org/approved/deep/er"),
        ("registry.example.org:5000/a/b", "registry.example.org:5000/a/b"),
        ("*.example.org/a", "deep.registry.example.org/a"),
        ("localhost:*/a", "localhost:5000/a"),
        ("average", "average"),
        ("aver*", "average"),
        ("*", "any.example.org/thing"),
        ("*/a", "any.example.org/a"),
        ("registry.example.org/v[12]", "registry.example.org/v2"),
    ],
)
def test_a_pattern_allows_what_it_names(pattern: str, name: str) -> None:
    assert image_matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (APPROVED, "registry.example.org/approved"),
        (APPROVED, "registry.example.org/approvedx/average"),
        (APPROVED, "registry.example.org.evil.example/approved/average"),
        (APPROVED, "evil.example/registry.example.org/approved/average"),
        (APPROVED, "registry.example.org:5000/approved/average"),
        (APPROVED, "Registry.example.org/approved/average"),
        (APPROVED, "registry-example.org/approved/average"),
        ("*.example.org/a", "evil.example/registry.example.org/a"),
        ("*.example.org/a", "registry.example.org/x/a"),
        ("*/a", "evil.example/b/a"),
        ("aver*", "average.evil.example/x"),
        ("aver*", "average/x"),
        ("average", "library/average"),
        ("average", "docker.io/library/average"),
        ("registry.example.org/v[12]", "registry.example.org/v12"),
    ],
)
def test_a_pattern_allows_nothing_that_only_looks_like_it(pattern: str, name: str) -> None:
    assert not image_matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("registry.example.org/a/*", "REGISTRY.example.org/a/x"),
        ("Registry.Example.org/a/*", "registry.example.org/a/x"),
        ("registry.example.org/a/*", "registry.example.org:443/a/x"),
        ("registry.example.org:443/a/*", "registry.example.org/a/x"),
        ("vantage/x", "docker.io/vantage/x"),
        ("docker.io/vantage/x", "vantage/x"),
        ("average", "docker.io/library/average"),
        ("docker.io/library/average", "average"),
        ("index.docker.io/*", "average"),
        ("registry-1.docker.io/vantage/*", "docker.io:443/vantage/x"),
    ],
)
def test_a_rule_that_takes_something_away_means_every_spelling(pattern: str, name: str) -> None:
    assert image_is_meant(pattern, name)
    assert not image_matches(pattern, name)


@pytest.mark.parametrize("name", ["other.example.org/a/x", "registry.example.org:5000/a/x", "a/x"])
def test_a_rule_that_takes_something_away_means_no_other_image(name: str) -> None:
    assert not image_is_meant("registry.example.org/a/*", name)


def test_spellings_of_one_image_are_the_same_and_others_are_not() -> None:
    assert is_same_image("docker.io/library/a", "a")
    assert is_same_image("reg.example.org/a", "reg.example.org:443/a")
    assert not is_same_image("reg.example.org/a", "a")
    assert not is_same_image("reg.example.org/a", "reg.example.org:5000/a")


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (STORE, STORE),
        (STORE, f"{STORE}/"),
        (f"{STORE}/", STORE),
        ("https://store.example.org:7602/api", "https://store.example.org:7602/api"),
        ("https://store.example.org:*/api", "https://store.example.org:7602/api"),
        ("https://store.example.org/*", STORE),
        ("https://*.example.org/api", STORE),
        ("https://store.example.org", "https://store.example.org/"),
        ("*", STORE),
    ],
)
def test_a_pattern_allows_the_store_it_names(pattern: str, url: str) -> None:
    assert store_matches(pattern, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://store.example.org/api",
        "https://store.example.org",
        "https://store.example.org/api/v2",
        "https://store.example.org/apix",
        "https://store.example.org:443/api",
        "https://store.example.org:8443/api",
        "https://store.example.org.evil.example/api",
        "https://evil.example/store.example.org/api",
        "https://storeXexample.org/api",
        "https://STORE.example.org/api",
    ],
)
def test_a_store_that_only_looks_like_the_allowed_one_is_not(url: str) -> None:
    assert is_store_url(url)
    assert not store_matches(STORE, url)
    assert not store_matches("https://*.store.example.org/*", url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store.example.org/api",
        "ftp://store.example.org/api",
        "https://user@store.example.org/api",
        "https://store.example.org@evil.example/api",
        "https://store.example.org:pw@evil.example/api",
        "https://store.example.org./api",
        "https://.store.example.org/api",
        "https://store.example.org/../api",
        "https://store.example.org/x/..",
        "https://store.example.org/./api",
        "https://store.example.org//api",
        "https://store.example.org/api//",
        "https://store.example.org/api?x=1",
        "https://store.example.org/api#x",
        "https://store.example.org/%61pi",
        "https://store.example.org\\@evil.example/api",
        "https://store.example.org/a pi",
        "https://store.example.org/api\n",
        " https://store.example.org/api",
        "https://stor\u0435.example.org/api",
        "https://[::1]/api",
        "https://store.example.org/" + "a" * 600,
    ],
)
def test_what_could_be_read_in_two_ways_is_no_store_at_all(url: str) -> None:
    assert not is_store_url(url)
    assert not store_matches("*", url)


def test_words_are_compared_whole_and_in_their_case() -> None:
    assert word_matches(("partial_*",), "partial_average")
    assert not word_matches(("partial_*",), "xpartial_average")
    assert not word_matches(("partial",), "partial\n")
    assert not word_matches(("partial",), "Partial")
    assert not word_matches((), "partial")


@pytest.mark.parametrize("pattern", ["*", "*/a", "*:5000/a", "https://*/api", "http://*:80/*"])
def test_a_pattern_for_every_registry_or_store_is_open(pattern: str) -> None:
    assert is_open(pattern)


@pytest.mark.parametrize("pattern", ["a/*", "*.example.org/a", "https://*.example.org/api", "aver*", STORE])
def test_a_pattern_that_names_a_place_is_not_open(pattern: str) -> None:
    assert not is_open(pattern)


def test_a_name_from_outside_is_shown_so_that_nobody_mistakes_it() -> None:
    assert shown("m\u0435an\n\x1b[31m") == "m\\u0435an\\x0a\\x1b[31m"
    assert shown("a" * 500) == "a" * 120 + "..."
