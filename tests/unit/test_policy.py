"""The owner's rules: what they allow, what they refuse, and which rule decided."""

import pytest

from node_agent.domain.container import Relaxation
from node_agent.domain.policy import Answer, ImageName, judge_image, matching_relaxation, parse_image

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
RULES = ("registry.example.org/approved/*", f"registry.example.org/exact/image@{DIGEST}")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("average", ImageName("average")),
        ("average:1.0", ImageName("average", tag="1.0")),
        ("localhost:5000/average", ImageName("localhost:5000/average")),
        ("localhost:5000/a/b:v1", ImageName("localhost:5000/a/b", tag="v1")),
        (f"reg.example.org/a@{DIGEST}", ImageName("reg.example.org/a", digest=DIGEST)),
        (f"reg.example.org/a:v1@{DIGEST}", ImageName("reg.example.org/a", tag="v1", digest=DIGEST)),
        ("a__b--c.d/e_f", ImageName("a__b--c.d/e_f")),
    ],
)
def test_a_reference_is_taken_apart(reference: str, expected: ImageName) -> None:
    assert parse_image(reference) == expected


@pytest.mark.parametrize(
    "reference",
    [
        "",
        " ",
        "average ",
        "average\n",
        "-average",
        "registry.example.org/approved/../evil/image",
        "registry.example.org/approved/./image",
        "registry.example.org//image",
        "registry.example.org/Upper",
        "registry.example.org/image:",
        "registry.example.org/image@sha256:short",
        "registry.example.org/image@md5:" + "a" * 64,
        "https://registry.example.org/image",
        "a" * 600,
        "registry.example.org/" + "a-" * 200 + "!",
    ],
)
def test_what_is_no_reference_never_runs(reference: str) -> None:
    assert parse_image(reference) is None
    verdict = judge_image(reference, ("*",))
    assert verdict.answer is Answer.NO
    assert "well formed" in verdict.rule


def test_nothing_listed_means_nothing_runs() -> None:
    verdict = judge_image("average", ())
    assert verdict.answer is Answer.NO
    assert "policy.algorithms is empty" in verdict.rule


@pytest.mark.parametrize(
    "reference", ["registry.example.org/approved/a", "registry.example.org/approved/a:v1"]
)
def test_a_glob_over_the_name_allows_every_tag_and_digest(reference: str) -> None:
    for digest in (None, DIGEST, OTHER):
        verdict = judge_image(reference, RULES, digest=digest)
        assert (verdict.answer, verdict.rule) == (Answer.YES, f"policy.algorithms: {RULES[0]}")


@pytest.mark.parametrize(
    "reference",
    ["evil.example.org/registry.example.org/approved/a", "registry.example.org/approve/a", "approved/a", "a"],
)
def test_the_whole_name_has_to_match(reference: str) -> None:
    verdict = judge_image(reference, RULES)
    assert verdict.answer is Answer.NO
    assert "no rule" in verdict.rule


def test_an_exact_rule_depends_on_the_digest_until_it_is_known() -> None:
    image = "registry.example.org/exact/image:v1"
    assert judge_image(image, RULES).answer is Answer.DEPENDS_ON_DIGEST
    assert judge_image(image, RULES, digest=DIGEST).answer is Answer.YES
    refused = judge_image(image, RULES, digest=OTHER)
    assert refused.answer is Answer.NO
    assert "content" in refused.rule


def test_what_was_pinned_counts_more_than_what_was_asked_for() -> None:
    image = f"registry.example.org/exact/image@{DIGEST}"
    assert judge_image(image, RULES).answer is Answer.YES
    assert judge_image(image, RULES, digest=OTHER).answer is Answer.NO
    assert judge_image(f"registry.example.org/exact/image@{OTHER}", RULES).answer is Answer.NO


def test_several_exact_rules_allow_several_contents() -> None:
    rules = (f"a@{DIGEST}", f"a@{OTHER}")
    assert judge_image("a", rules, digest=OTHER).rule == f"policy.algorithms: a@{OTHER}"


def test_the_first_relaxation_that_matches_the_whole_name_counts() -> None:
    first = Relaxation(image="registry.example.org/old/*", image_user=True)
    second = Relaxation(image="*", writable_root=True)
    assert matching_relaxation("registry.example.org/old/a:v1", (first, second)) is first
    assert matching_relaxation("average", (first, second)) is second


@pytest.mark.parametrize("reference", ["average", "not a reference"])
def test_nothing_is_relaxed_unless_it_is_said(reference: str) -> None:
    plain = matching_relaxation(reference, (Relaxation(image="other", image_user=True),))
    assert (plain.image_user, plain.writable_root, plain.capabilities) == (False, False, ())
