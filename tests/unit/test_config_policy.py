"""The policy in the configuration file: what it becomes, and what is refused because it could mean more than it says."""

from pathlib import Path

import pytest

from node_agent.domain.policy import Combine, Policy, Restriction
from node_agent.domain.verdict import has_user_names
from tests.unit.test_config import REST, PaperMachine, fault_of, faults_of, load_text

DIGEST = "sha256:" + "a" * 64


def policy_of(text: str, tmp_path: Path) -> Policy:
    return load_text(f"{REST}policy: {{{text}}}\n", tmp_path).policy


def fault_in(text: str, tmp_path: Path) -> str:
    return fault_of(f"{REST}policy: {{{text}}}\n", tmp_path)


def test_without_a_policy_no_list_is_configured(tmp_path: Path) -> None:
    assert load_text(REST, tmp_path).policy == Policy()
    assert Policy().algorithms is None


def test_a_full_policy_comes_out_in_domain_words(tmp_path: Path) -> None:
    text = (
        "algorithms: [x/*], algorithm_stores: ['https://s.example.org/api'], combine: either, users: [3, '4', alice],"
        " organizations: [2, Beta Hospital], own_organization_only: true, basics_algorithm: false,"
        " restrict: [{image: x/*, methods: [mean, partial_*], databases: []}, {image: '*', methods: []}]"
    )
    assert policy_of(text, tmp_path) == Policy(
        algorithms=("x/*",),
        stores=("https://s.example.org/api",),
        combine=Combine.EITHER,
        users=(3, 4, "alice"),
        organizations=(2, "Beta Hospital"),
        own_organization_only=True,
        basics_algorithm=False,
        restrictions=(
            Restriction(image="x/*", methods=("mean", "partial_*"), databases=()),
            Restriction(image="*", methods=()),
        ),
    )


def test_an_empty_list_is_not_the_same_as_none(tmp_path: Path) -> None:
    empty = policy_of("algorithms: [], algorithm_stores: [], users: [], organizations: []", tmp_path)
    assert (empty.algorithms, empty.stores, empty.users, empty.organizations) == ((), (), (), ())


def test_the_address_of_a_consumer_means_the_same_in_any_capitals(tmp_path: Path) -> None:
    policy = policy_of(f"algorithms: [x/*], users: ['0x{'aB' * 20}', Alice]", tmp_path)
    assert policy.users == ("0x" + "ab" * 20, "Alice")
    assert has_user_names(policy)
    assert not has_user_names(Policy(users=("0x" + "ab" * 20,)))


@pytest.mark.parametrize("key", ["algorithms", "algorithm_stores", "users", "organizations", "restrict"])
@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_a_list_that_lost_its_entries_opens_nothing_silently(key: str, nothing: str, tmp_path: Path) -> None:
    fault = fault_of(f"{REST}policy:\n  combine: both\n  {key}: {nothing}\n", tmp_path)
    assert (
        fault == f"policy.{key} (line 7): has nothing behind it; write [] to allow nothing, or leave it out"
    )


def test_a_restriction_that_lost_its_methods_is_told(tmp_path: Path) -> None:
    text = f"{REST}policy:\n  restrict:\n  - image: x/*\n    methods:\n    databases: [a]\n"
    assert fault_of(text, tmp_path).startswith("policy.restrict[0].methods (line 8): has nothing behind it")


def test_patterns_may_come_from_the_environment_and_do_not_show_then(tmp_path: Path) -> None:
    text = f"{REST}policy: {{algorithms: ['${{P}}'], users: ['${{U}}']}}\n"
    machine = PaperMachine(environment={"P": "x/*", "U": "7"})
    assert load_text(text, tmp_path, machine).policy == Policy(algorithms=("x/*",), users=(7,))
    hostile = PaperMachine(environment={"P": "^Hunter2.*$", "U": "Hunter2*"})
    assert not any("Hunter2" in fault for fault in faults_of(text, tmp_path, hostile))


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*/average",
        "*.example.org/a/*",
        "localhost:*/a",
        "vantage6/*",
        "aver*",
        f"x/y@{DIGEST}",
        "x/v[12]",
    ],
)
def test_patterns_of_images_are_accepted(pattern: str, tmp_path: Path) -> None:
    assert policy_of(f"algorithms: ['{pattern}']", tmp_path).algorithms == (pattern,)


@pytest.mark.parametrize(
    "pattern",
    [
        "https://store.example.org/api",
        "https://store.example.org",
        "https://store.example.org/",
        "https://*.example.org/api",
        "http://localhost:7602/api",
        "https://store.example.org:*/*",
        "https://*/api",
        "*",
    ],
)
def test_patterns_of_stores_are_accepted(pattern: str, tmp_path: Path) -> None:
    assert policy_of(f"algorithm_stores: ['{pattern}']", tmp_path).stores == (pattern,)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        # regular expressions, as other nodes have them
        ("algorithms: ['^foo.*$']", "here perhaps foo*"),
        ("algorithms: ['^harbor2.example.org/.*$']", "here perhaps harbor2.example.org/*"),
        ("algorithms: ['foo/bar.*']", "here perhaps foo/bar*"),
        ("algorithms: ['foo/.+']", "here perhaps foo/*"),
        (r"algorithms: ['ghcr\.io/x']", "here perhaps ghcr.io/x"),
        ("algorithms: ['(a|b)/x']", "looks like a regular expression"),
        ("algorithms: ['a{2}/x']", "looks like a regular expression"),
        ("algorithm_stores: ['https://store.example.org/.*']", "here perhaps https://store.example.org/*"),
        ("restrict: [{image: '^x/.*', methods: [a]}]", "here perhaps x/*"),
        ("restrict: [{image: x, methods: ['partial_.*']}]", "here perhaps partial_*"),
        ("restrict: [{image: x, databases: ['^a$']}]", "here perhaps a"),
        # wildcards that would reach strangers
        ("algorithms: ['registry.example.org*/x']", "registries of strangers"),
        ("algorithms: ['vantage6*/x']", "registries of strangers"),
        ("algorithms: ['*example.org/x']", "registries of strangers"),
        ("algorithms: ['**/x']", "registries of strangers"),
        ("algorithm_stores: ['https://store.example.org*/api']", "is not a store's address"),
        ("algorithm_stores: ['https://*example.org/api']", "is not a store's address"),
        # what is no pattern at all
        ("algorithms: ['../x']", "is not an image name or pattern"),
        ("algorithms: ['x/y ']", "is not an image name or pattern"),
        ("algorithms: ['x/\u0435']", "is not an image name or pattern"),
        ("algorithms: ['']", "is not an image name or pattern"),
        ("algorithms: [true]", "put it in quotes"),
        ("algorithms: [{image: x}]", "must be text"),
        ("algorithms: [x/y, x/z, x/y]", "the same entry twice, as [0] and as [2]"),
        ("algorithm_stores: [store.example.org/api]", "must begin with https://"),
        ("algorithm_stores: ['ftp://s/api']", "must begin with https://"),
        ("algorithm_stores: ['https://u:p@s/api']", "is not a store's address"),
        ("algorithm_stores: ['https://s/../api']", "is not a store's address"),
        ("algorithm_stores: ['https://s./api']", "is not a store's address"),
        ("algorithm_stores: ['https://s/api?x=1']", "is not a store's address"),
        ("algorithm_stores: ['https://s//api']", "is not a store's address"),
        ("algorithm_stores: [7]", "put it in quotes"),
        ("combine: neither", "is not one of both, either"),
        ("combine: true", "is not one of both, either"),
        # who
        ("users: alice", "must be a list"),
        ("users: [0]", "is not an id"),
        ("users: [-1]", "is not an id"),
        ("users: ['007']", "is not an id"),
        ("users: ['0']", "is not an id"),
        ("users: ['99999999999999999999999']", "is not an id"),
        ("users: [1.5]", "must be an id"),
        ("users: [true]", "must be an id"),
        ("users: [[3]]", "must be an id"),
        ("users: ['']", "is not a name"),
        ("users: ['alice ']", "is not a name"),
        ('users: ["ali\\nce"]', "is not a name"),
        ('users: ["ali\\u200bce"]', "is not a name"),
        ("users: ['\u0661\u0662']", "not written in the digits 0 to 9"),
        ("users: ['1 2']", "not written in the digits 0 to 9"),
        ("users: ['*']", "is no pattern"),
        ("users: [3, '3']", "the same entry twice"),
        ("organizations: [beta, beta]", "the same entry twice"),
        ("organizations: {}", "must be a list"),
        ("own_organization_only: 'yes'", "must be true or false"),
        ("basics_algorithm: 1", "must be true or false"),
        # restrictions
        ("restrict: [{methods: [a]}]", "is missing"),
        ("restrict: [{image: x}]", "a restriction needs methods, databases, or both"),
        ("restrict: [{image: 'x@" + DIGEST + "', methods: [a]}]", "without digest"),
        ("restrict: [{image: x, methods: ['a b']}]", "is not a name or pattern"),
        ("restrict: [{image: x, methods: [3]}]", "put it in quotes"),
        ("restrict: [{image: x, methods: a}]", "must be a list"),
        ("restrict: [{image: x, methods: [a], label: [b]}]", "is not a setting"),
        ("restrict: {}", "must be a list"),
    ],
)
def test_what_could_mean_more_than_it_says_is_refused(text: str, part: str, tmp_path: Path) -> None:
    assert part in fault_in(text, tmp_path)
