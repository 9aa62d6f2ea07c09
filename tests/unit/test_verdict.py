"""The owner's rules: what they allow, what they refuse, which rule decided, and that nothing is open by accident."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from node_agent.domain.policy import Combine, Policy, Restriction
from node_agent.domain.verdict import Answer, Approval, Fact, Facts, Verdict, judge

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
IMAGE = "registry.example.org/approved/average"
STORE = "https://store.example.org/api"
OURS = Policy(
    algorithms=("registry.example.org/approved/*", f"registry.example.org/exact/image@{DIGEST}"),
    stores=(STORE,),
    users=(3, "alice"),
    organizations=(2, "beta"),
    restrictions=(
        Restriction(
            image="registry.example.org/approved/*",
            methods=("partial_*", "mean"),
            databases=("default", "x_*"),
        ),
    ),
)
FINE = Facts(
    image=IMAGE,
    digest=DIGEST,
    user_id=3,
    organization_id=2,
    organization_name="alpha",
    own_organization_id=9,
    databases=("default",),
    method="partial_average",
    store_url=STORE,
    approval=Approval(given=True),
)


def verdict_of(policy: Policy = OURS, **changes: Any) -> Verdict:
    return judge(policy, replace(FINE, **changes))


def test_what_keeps_every_rule_is_allowed() -> None:
    assert verdict_of().answer is Answer.YES


# --- the hostile corpus: each beside the near miss that is allowed -------------------------------------------------

CORPUS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # the rule that refuses, what is tried, what is allowed
    ("policy.algorithms", {"image": "evil.example/registry.example.org/approved/average"}, {}),
    ("policy.algorithms", {"image": "registry.example.org/approve/average"}, {}),
    ("policy.algorithms", {"image": "registry.example.org/approvedx/average"}, {}),
    ("policy.algorithms", {"image": "registry.example.org.evil.example/approved/average"}, {}),
    ("policy.algorithms", {"image": "registry-example.org/approved/average"}, {}),
    ("policy.algorithms", {"image": "registry.example.org:5000/approved/average"}, {}),
    ("policy.algorithms", {"image": "registry.example.org:443/approved/average"}, {}),
    ("policy.algorithms", {"image": "REGISTRY.example.org/approved/average"}, {}),
    ("policy.algorithms", {"image": "approved/average"}, {}),
    ("policy.algorithms", {"image": "average"}, {}),
    ("policy.algorithms", {"image": "registry.example.org/approved"}, {"image": f"{IMAGE}:latest"}),
    ("image", {"image": ""}, {}),
    ("image", {"image": " registry.example.org/approved/average"}, {}),
    ("image", {"image": "registry.example.org/approved/average\n"}, {}),
    ("image", {"image": "registry.example.org/approved/ave\nrage"}, {}),
    ("image", {"image": "registry.example.org/approved/../evil/image"}, {}),
    ("image", {"image": "registry.example.org/approved//average"}, {}),
    ("image", {"image": "registry.example.org/approved/Average"}, {}),
    ("image", {"image": "registry.example.org/approved/av\u0435rage"}, {}),
    ("image", {"image": "registry.example.org./approved/average"}, {}),
    ("image", {"image": "user@registry.example.org/approved/average"}, {}),
    ("image", {"image": "https://registry.example.org/approved/average"}, {}),
    ("image", {"image": "registry.example.org/approved/average:tag:tag"}, {}),
    ("image", {"image": "registry.example.org/approved/" + "a" * 600}, {}),
    (
        "policy.algorithms",
        {"image": "registry.example.org/exact/image:1.0", "digest": OTHER},
        {"image": "registry.example.org/exact/image:1.0", "digest": DIGEST},
    ),
    (
        "policy.algorithms",
        # what was pinned counts more than what was asked for
        {"image": f"registry.example.org/exact/image@{DIGEST}", "digest": OTHER},
        {"image": f"registry.example.org/exact/image@{DIGEST}", "digest": None},
    ),
    (
        "policy.algorithms",
        {"image": "registry.example.org/exact/image", "digest": None},
        {"image": "registry.example.org/exact/image"},
    ),
    ("policy.users", {"user_id": None}, {"user_id": None, "user_name": "alice"}),
    ("policy.users", {"user_id": 4}, {"user_id": 3}),
    ("policy.users", {"user_id": 33}, {"user_id": 3}),
    ("policy.users", {"user_id": True}, {"user_id": 3}),
    ("policy.users", {"user_id": 4, "user_name": "3"}, {"user_id": 3, "user_name": "mallory"}),
    ("policy.users", {"user_id": 4, "user_name": "Alice"}, {"user_id": 4, "user_name": "alice"}),
    ("policy.users", {"user_id": 4, "user_name": "alice "}, {"user_id": 4, "user_name": "alice"}),
    ("policy.users", {"user_id": 4, "user_name": "\u0430lice"}, {"user_id": 4, "user_name": "alice"}),
    ("policy.users", {"user_id": 4, "user_name": ""}, {"user_id": 4, "user_name": "alice"}),
    ("policy.organizations", {"organization_id": None, "organization_name": None}, {}),
    ("policy.organizations", {"organization_id": 22}, {"organization_id": 2}),
    (
        "policy.organizations",
        {"organization_id": 5, "organization_name": "2"},
        {"organization_id": 5, "organization_name": "beta"},
    ),
    (
        "policy.organizations",
        {"organization_id": 5, "organization_name": "beta\n"},
        {"organization_id": 5, "organization_name": "beta"},
    ),
    ("policy.organizations", {"organization_id": 5, "organization_name": "Beta"}, {"organization_id": 2}),
    ("policy.organizations", {"organization_id": 5, "organization_name": "b\u0435ta"}, {}),
    ("policy.restrict[0].databases", {"databases": ("secret",)}, {"databases": ("x_1",)}),
    ("policy.restrict[0].databases", {"databases": ("default", "secret")}, {"databases": ()}),
    ("policy.restrict[0].databases", {"databases": ("Default",)}, {"databases": ("default",)}),
    ("policy.restrict[0].databases", {"databases": ("default\n",)}, {"databases": ("default",)}),
    ("policy.restrict[0].databases", {"databases": ("yx_1",)}, {"databases": ("x_1", "default")}),
    ("policy.restrict[0].methods", {"method": None}, {"method": "mean"}),
    ("policy.restrict[0].methods", {"method": "meanest"}, {"method": "mean"}),
    ("policy.restrict[0].methods", {"method": "Mean"}, {"method": "mean"}),
    ("policy.restrict[0].methods", {"method": "mean\n"}, {"method": "mean"}),
    ("policy.restrict[0].methods", {"method": "xpartial_a"}, {"method": "partial_a"}),
    ("policy.restrict[0].methods", {"method": "m\u0435an"}, {"method": "mean"}),
    ("policy.restrict[0].methods", {"method": ""}, {"method": "mean"}),
    ("policy.algorithm_stores", {"store_url": None}, {}),
    ("policy.algorithm_stores", {"store_url": "http://store.example.org/api"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://store.example.org:8443/api"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://store.example.org@evil.example/api"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://user@store.example.org/api"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://store.example.org./api"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://store.example.org/x/../api"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://store.example.org/api?x"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://store.example.org/api\n"}, {}),
    ("policy.algorithm_stores", {"store_url": "https://evil.example/https://store.example.org/api"}, {}),
    ("policy.algorithm_stores", {"store_url": f"{STORE}x"}, {"store_url": f"{STORE}/"}),
    ("policy.algorithm_stores", {"approval": Approval(given=False, reason="no")}, {}),
    ("policy.algorithm_stores", {"approval": None}, {}),
    ("policy.algorithm_stores", {"digest": None}, {"image": f"{IMAGE}@{DIGEST}", "digest": None}),
]


@pytest.mark.parametrize(("rule", "hostile", "near"), CORPUS)
def test_a_trick_is_refused_by_name_of_the_rule_and_its_neighbour_is_allowed(
    rule: str, hostile: dict[str, Any], near: dict[str, Any]
) -> None:
    refused = verdict_of(**hostile)
    assert (refused.answer, refused.decider.rule) == (Answer.NO, rule)
    assert "\n" not in str(refused.decider)
    assert str(refused.decider).isascii()
    assert verdict_of(**near).answer is Answer.YES


def test_an_empty_list_allows_nobody_and_nothing() -> None:
    for changes, rule in (
        ({"users": ()}, "policy.users"),
        ({"organizations": ()}, "policy.organizations"),
        ({"algorithms": ()}, "policy.algorithms"),
        ({"stores": ()}, "policy.algorithm_stores"),
        ({"restrictions": (Restriction(image="*", methods=()),)}, "policy.restrict[0].methods"),
        ({"restrictions": (Restriction(image="*", databases=()),)}, "policy.restrict[0].databases"),
    ):
        verdict = verdict_of(replace(OURS, **changes))
        assert (verdict.answer, verdict.decider.rule) == (Answer.NO, rule)


def test_an_image_that_may_read_no_database_may_be_asked_without_one() -> None:
    policy = replace(OURS, restrictions=(Restriction(image="*", databases=()),))
    assert verdict_of(policy, databases=()).answer is Answer.YES


def test_a_user_who_is_listed_by_name_alone_is_refused_with_the_way_out() -> None:
    refused = verdict_of(user_id=4)
    assert "list the id" in refused.decider.text
    assert "list the id" not in verdict_of(replace(OURS, users=(3,)), user_id=4).decider.text


def test_every_restriction_that_means_the_image_counts() -> None:
    wide = Restriction(image="*", methods=("*",))
    narrow = Restriction(image="registry.example.org/*", methods=("mean",))
    policy = replace(OURS, restrictions=(wide, narrow))
    assert verdict_of(policy, method="mean").answer is Answer.YES
    assert verdict_of(policy, method="median").decider.rule == "policy.restrict[1].methods"


def test_a_restriction_cannot_be_got_round_by_another_spelling_of_the_image() -> None:
    policy = Policy(
        algorithms=("*",), restrictions=(Restriction(image="registry.example.org/*", methods=()),)
    )
    for image in ("REGISTRY.example.org/a", "registry.example.org:443/a", "registry.example.org/a:v1"):
        assert verdict_of(policy, image=image).answer is Answer.NO
    assert verdict_of(policy, image="other.example.org/a").answer is Answer.YES


@pytest.mark.parametrize(
    "image",
    [
        "ghcr.io/vantage6/algorithm-basics:latest",
        "GHCR.io/vantage6/algorithm-basics",
        "mirror/algorithm-basics",
    ],
)
def test_the_basics_image_is_refused_whatever_allows_it_once_it_is_switched_off(image: str) -> None:
    policy = Policy(algorithms=("*", image.partition(":")[0]), basics_algorithm=False)
    assert verdict_of(policy, image=image).decider.rule == "policy.basics_algorithm"
    assert verdict_of(replace(policy, basics_algorithm=True), image=image).answer is Answer.YES
    assert verdict_of(policy, image="ghcr.io/vantage6/algorithm-basics-2").answer is Answer.YES


def test_a_node_for_its_own_organization_only_refuses_every_other() -> None:
    policy = Policy(algorithms=("*",), own_organization_only=True)
    assert verdict_of(policy, organization_id=9).answer is Answer.YES
    for asks in (2, None):
        refused = verdict_of(policy, organization_id=asks)
        assert (refused.answer, refused.decider.rule) == (Answer.NO, "policy.own_organization_only")
    nobody = verdict_of(policy, organization_id=None, own_organization_id=None)
    assert nobody.answer is Answer.NO


# --- images and stores together -----------------------------------------------------------------------------------

LISTS = (None, (), ("other/*",), ("registry.example.org/*",))
STORES = (None, (), ("https://other.example.org/api",), (STORE,))


def allows(listed: tuple[str, ...] | None) -> bool:
    return listed in {LISTS[3], STORES[3]}


def expected(algorithms: tuple[str, ...] | None, stores: tuple[str, ...] | None, combine: Combine) -> bool:
    configured = [allows(listed) for listed in (algorithms, stores) if listed is not None]
    decide = any if combine is Combine.EITHER else all
    return bool(configured) and decide(configured)


@pytest.mark.parametrize(("algorithms", "stores", "combine"), list(product(LISTS, STORES, Combine)))
def test_no_combination_of_the_two_lists_is_open_by_accident(
    algorithms: tuple[str, ...] | None, stores: tuple[str, ...] | None, combine: Combine
) -> None:
    verdict = verdict_of(Policy(algorithms=algorithms, stores=stores, combine=combine))
    assert (verdict.answer is Answer.YES) is expected(algorithms, stores, combine)
    assert verdict.answer is not Answer.UNKNOWN
    assert "policy." in str(verdict.decider)


WHO = (None, (), (3, "alice"))
RESTRICTIONS = (
    (),
    (Restriction(image="*", methods=("mean",), databases=("default",)),),
    (Restriction(image="other/*", databases=()),),
)
LISTS_ONCE, STORES_ONCE = (None, LISTS[2], LISTS[3]), (None, STORES[2], STORES[3])


def policies() -> Iterator[Policy]:
    for algorithms, stores, users, organizations, restrictions, own, basics in product(
        LISTS_ONCE, STORES_ONCE, WHO, WHO, RESTRICTIONS, (False, True), (True, False)
    ):
        yield Policy(
            algorithms=algorithms,
            stores=stores,
            users=users,
            organizations=organizations,
            restrictions=restrictions,
            own_organization_only=own,
            basics_algorithm=basics,
        )


def narrowed(policy: Policy) -> Iterator[Policy]:
    """Give the policy with one entry less, or with one restriction more."""
    for name in ("algorithms", "stores", "users", "organizations"):
        if getattr(policy, name):
            yield replace(policy, **{name: getattr(policy, name)[1:]})
    for name in ("users", "organizations"):
        if getattr(policy, name) is None:
            yield replace(policy, **{name: (4,)})
    yield replace(policy, own_organization_only=True)
    yield replace(policy, basics_algorithm=False)
    more = Restriction(image="registry.example.org/*", methods=("mean",))
    yield replace(policy, restrictions=(*policy.restrictions, more))


QUESTIONS = (
    replace(FINE, organization_id=3, method="mean", own_organization_id=3),
    replace(FINE, image="registry.example.org/x/algorithm-basics"),
)


def test_a_rule_less_or_a_restriction_more_never_allows_more() -> None:
    allowed = 0
    for policy, facts in product(policies(), QUESTIONS):
        if judge(policy, facts).answer is Answer.YES:
            allowed += 1
            continue
        assert all(judge(less, facts).answer is not Answer.YES for less in narrowed(policy))
    assert allowed > 50  # else there was nothing to lose


# --- what is not known yet -----------------------------------------------------------------------------------------


def test_an_exact_rule_depends_on_the_digest_until_it_is_known() -> None:
    policy = Policy(algorithms=(f"{IMAGE}@{DIGEST}",))
    waits = verdict_of(policy, digest=None, unknown=frozenset({Fact.DIGEST}))
    assert (waits.answer, waits.needs) == (Answer.UNKNOWN, (Fact.DIGEST,))
    named = verdict_of(policy, image=f"{IMAGE}@{DIGEST}", digest=None, unknown=frozenset({Fact.DIGEST}))
    assert named.answer is Answer.YES


def test_only_what_the_policy_asks_for_is_missing() -> None:
    everything = frozenset(Fact)
    simple = verdict_of(Policy(algorithms=("registry.example.org/*",)), unknown=everything)
    assert (simple.answer, simple.needs) == (Answer.YES, ())
    full = verdict_of(OURS, user_id=None, organization_id=None, organization_name=None, unknown=everything)
    assert full.answer is Answer.UNKNOWN
    assert set(full.needs) == {Fact.USER, Fact.ORGANIZATION, Fact.DATABASES, Fact.METHOD, Fact.STORE}


def test_nothing_is_missing_any_more_once_a_rule_refused() -> None:
    refused = verdict_of(OURS, user_id=4, unknown=frozenset({Fact.METHOD, Fact.STORE}))
    assert (refused.answer, refused.needs) == (Answer.NO, ())


def test_either_list_is_enough_and_the_store_is_not_asked_then() -> None:
    policy = replace(OURS, combine=Combine.EITHER)
    assert verdict_of(policy, unknown=frozenset({Fact.STORE})).answer is Answer.YES
    other = verdict_of(policy, image="elsewhere/x", unknown=frozenset({Fact.STORE}))
    assert (other.answer, other.needs) == (Answer.UNKNOWN, (Fact.STORE,))


@pytest.mark.parametrize("fact", list(Fact))
def test_what_is_unknown_never_allows_what_is_refused_otherwise(fact: Fact) -> None:
    for changes in ({"approval": None}, {"store_url": None}, {"method": None}, {"organization_id": None}):
        policy = replace(OURS, organizations=(2,))
        assert verdict_of(policy, **changes, unknown=frozenset({fact})).answer is not Answer.YES
