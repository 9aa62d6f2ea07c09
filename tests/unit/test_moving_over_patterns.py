"""Regular expressions of the old node as patterns: never wider than before, and what is said when there is none."""

import re
from itertools import product

import pytest

from node_agent.config.vantage6.patterns import KeptOut, image_rules, store_rules
from node_agent.domain.patterns import image_matches, store_matches

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("pattern", "rules"),
    [
        ("x.org/a/b", ["x.org/a/b"]),
        ("average", ["average"]),
        (f"x.org/a@{DIGEST}", [f"x.org/a@{DIGEST}"]),
        (f"x.org/a:1@{DIGEST}", [f"x.org/a@{DIGEST}"]),
        (rf"^x\.org/a@{DIGEST}$", [f"x.org/a@{DIGEST}"]),
        (r"^x\.org/a/", ["x.org/a/*"]),
        (r"^x.org/a/", ["x.org/a/*"]),
        (r"x\.org/a/.*", ["x.org/a/*"]),
        (r"^x\.org/a/.*$", ["x.org/a/*"]),
        (r"^x\.org/a/.+", ["x.org/a/?*"]),
        (r"^x\.org/a/b", ["x.org/a/b*"]),
        (r"^x\.org:5000/a/", ["x.org:5000/a/*"]),
        (r"^x\.org/(a|b)/", ["x.org/a/*", "x.org/b/*"]),
        (r"^x\.org/(?:a|b)-c", ["x.org/a-c*", "x.org/b-c*"]),
        (r"^x\.org/a/|^y\.org/b/", ["x.org/a/*", "y.org/b/*"]),
        (r"^x\.org/a[0-9]", ["x.org/a[0-9]*"]),
        (r"^x\.org/[^a]b", ["x.org/[!a]b*"]),
        (r"^x\.org/.*/b", ["x.org/*/b*"]),
        (r"^x\.org/a\..*", ["x.org/a[.]*"]),
    ],
)
def test_what_a_pattern_can_say_is_carried_over(pattern: str, rules: list[str]) -> None:
    assert image_rules(pattern) == rules


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("x.org/a:1.0", "names a tag"),
        (r"^x\.org/a:latest$", "names a tag"),
        (r"^x\.org/a:.*", "names a tag"),
        (r"^x\.org/a$", "this image without tag only"),
        (r"^x\.org/a@sha256:aa", "a part of a digest"),
        (r"^x\.org/a.*@" + DIGEST, "a part of a digest"),
        (".*", "leaves the registry open"),
        (r"^x\.org", "leaves the registry open"),
        ("a|b", "leaves the registry open"),
        ("^x.*/a", "leaves the registry open"),
        (r"^x\.org/[a-z]+", "repeats something"),
        (r"^x\.org/a*", "repeats something"),
        (r"^x\.org/(a|b)+", "repeats something"),
        (r"^x\.org/a{2}", "repeats something"),
        (r"^x\.org/\w", "which a glob cannot say"),
        (r"^x\.org/a/(?!b)", "a kind of group"),
        (r"^x\.org/a/(?i:b)", "a kind of group"),
        (r"^x\.org/a/(b$|c)", "a group that does not end"),
        (r"^x\.org/[a/]b", "a set of characters"),
        (r"^x\.org/[]]b", "a set of characters"),
        (r"^x\.org/a^b", "in a way"),
        ("x/(a", "a group that does not end"),
        ("x/a)", "stands alone"),
        ("x/a\\", "ends in the middle"),
        ("*", "in a way"),
        ("x/" + "(a|b)" * 9, "more than 64"),
        ("x/" + "(" * 600, "longer than any"),
        ("x/a b", "is not an image name"),
        ("^x/a b", "no name has"),
    ],
)
def test_what_a_pattern_cannot_say_is_kept_out_with_its_reason(pattern: str, reason: str) -> None:
    with pytest.raises(KeptOut) as caught:
        image_rules(pattern)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("pattern", "offer"),
    [
        ("x.org/a:1.0", "x.org/a"),
        (r"^x\.org/a$", "x.org/a"),
        (r"^x\.org/[a-z]+/[a-z]+", "x.org/*/*"),
        (r"^x\.org/a\w*$", "x.org/a*"),
    ],
)
def test_what_the_owner_may_write_instead_is_offered(pattern: str, offer: str) -> None:
    with pytest.raises(KeptOut) as caught:
        image_rules(pattern)
    assert offer in [line for line, _ in caught.value.offers]


NAMES = [
    f"{host}/{path}"
    for host in ("x.org", "xxorg", "x.org:5000", "x.org.evil.com", "y.org")
    for path in ("a", "ab", "a/b", "a/bc", "a-c", "b-c", "b/c", "evil/x.org/a", "a.b", "aab", "a0", "a/b/c")
]
EXPRESSIONS = [
    f"{begin}{host}{path}{end}"
    for begin, host, path, end in product(
        ("^", ""),
        (r"x\.org/", "x.org/", r"x\.org:5000/", ".*/"),
        ("a", "a/", "(a|b)-c", "a.*", "a.b", "a[0-9]", "a/.+"),
        ("", ".*$"),
    )
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_nothing_is_allowed_that_was_not_allowed_before(expression: str) -> None:
    try:
        rules = image_rules(expression)
    except KeptOut:
        return
    for name, tag in product(NAMES, ("", ":1", ":latest", f"@{DIGEST}")):
        if any(image_matches(rule, name) for rule in rules):
            assert re.match(expression, name + tag)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("https://s.org/api", "https://s.org/api", "https://s.org/apix"),
        (r"^https://s\.org/api$", "https://s.org/api", "https://s.org/api/x"),
        (r"^https://s\.org/a", "https://s.org/api", "https://s.org.evil.com/api"),
        (r"^https://(s|t)\.org/api$", "https://t.org/api", "https://u.org/api"),
    ],
)
def test_stores_are_carried_over_by_their_whole_address(pattern: str, allowed: str, refused: str) -> None:
    rules = store_rules(pattern)
    assert any(store_matches(rule, allowed) for rule in rules)
    assert not any(store_matches(rule, refused) for rule in rules)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"^https://s\.org", "leaves the end of the host open"),
        (r".*", "does not begin with the address"),
        (r"^https://[a-z]+\.s\.org$", "repeats something"),
        ("s.org", "must begin with https://"),
    ],
)
def test_a_store_that_would_be_open_to_others_is_kept_out(pattern: str, reason: str) -> None:
    with pytest.raises(KeptOut) as caught:
        store_rules(pattern)
    assert reason in caught.value.reason
