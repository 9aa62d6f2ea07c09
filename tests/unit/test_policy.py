"""Image references taken apart, what an image is given back, and what of the policy is shared."""

import pytest

from node_agent.domain.container import Relaxation
from node_agent.domain.policy import ImageName, Policy, matching_relaxation, parse_image, shared

DIGEST = "sha256:" + "a" * 64


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
def test_what_is_no_reference_is_not_taken_apart(reference: str) -> None:
    assert parse_image(reference) is None


def test_the_first_relaxation_that_matches_the_whole_name_counts() -> None:
    first = Relaxation(image="registry.example.org/old/*", image_user=True)
    second = Relaxation(image="*", writable_root=True)
    assert matching_relaxation("registry.example.org/old/a:v1", (first, second)) is first
    assert matching_relaxation("average", (first, second)) is second


@pytest.mark.parametrize("reference", ["average", "not a reference"])
def test_nothing_is_relaxed_unless_it_is_said(reference: str) -> None:
    plain = matching_relaxation(reference, (Relaxation(image="other", image_user=True),))
    assert (plain.image_user, plain.writable_root, plain.capabilities) == (False, False, ())


# --- what the server may know ---------------------------------------------------------------------------------


def test_the_policy_is_shared_in_the_servers_words() -> None:
    policy = Policy(algorithms=("reg/*",), stores=("https://s/api",), users=(3, 4), organizations=(2, "beta"))
    assert shared(policy, own_organization_id=9) == {
        "allowed_algorithms": ["reg/*"],
        "allowed_algorithm_stores": ["https://s/api"],
        "allowed_users": ["3", "4"],
        "allowed_orgs": ["2", "beta"],
    }


def test_a_user_who_is_listed_by_name_keeps_the_users_from_being_shared() -> None:
    # the server makes a number of each entry, and fails on every task for the node when one is none
    assert "allowed_users" not in shared(Policy(users=(3, "alice")), own_organization_id=9)


def test_consumers_of_the_compute_api_are_no_business_of_the_server() -> None:
    told = shared(Policy(users=(3, "0x" + "ab" * 20)), own_organization_id=9)
    assert told["allowed_users"] == ["3"]


def test_what_is_not_configured_is_not_shared() -> None:
    assert shared(Policy(), own_organization_id=9) == {"allowed_algorithms": []}
    assert shared(Policy(algorithms=("a", "*")), own_organization_id=9) == {"allowed_algorithms": "all"}


def test_a_node_for_its_own_organization_only_shares_that_one() -> None:
    policy = Policy(own_organization_only=True, organizations=(2, 9))
    assert shared(policy, own_organization_id=9)["allowed_orgs"] == ["9"]
