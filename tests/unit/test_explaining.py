"""`policy explain`: every rule in order, what is unknown, and a verdict that promises nothing it cannot keep."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent import cli
from node_agent.domain.policy import Combine, Policy, Restriction
from node_agent.domain.verdict import Answer
from node_agent.explaining import Question, as_dict, explain, lines

DIGEST = "sha256:" + "a" * 64
IMAGE = "registry.example.org/approved/average:1"
POLICY = Policy(
    algorithms=("registry.example.org/approved/*",),
    users=(3, "alice"),
    organizations=(2, "beta"),
    restrictions=(Restriction(image="*", methods=("mean",), databases=("default",)),),
)
KNOWN = Question(image=IMAGE, user="3", organization="2", method="mean", databases=("default",))


def verdict(policy: Policy = POLICY, **changes: Any) -> tuple[str, str]:
    question = replace(KNOWN, **changes)
    told = as_dict(explain(policy, question), question)
    return told["verdict"], told["rule"]


def test_a_task_that_is_fully_known_is_allowed_or_refused() -> None:
    assert verdict() == ("allowed", "policy.algorithms")
    assert verdict(image="evil/x") == ("refused", "policy.algorithms")
    assert verdict(user="4") == ("refused", "policy.users")
    assert verdict(organization="gamma", user="3")[0] == "unknown"
    assert verdict(method="median") == ("refused", "policy.restrict[0].methods")
    assert verdict(databases=("secret",)) == ("refused", "policy.restrict[0].databases")
    assert verdict(databases=()) == ("allowed", "policy.algorithms")


@pytest.mark.parametrize(
    ("unknown", "rule", "option"),
    [
        ("user", "policy.users", "--user ID"),
        ("organization", "policy.organizations", "--organization ID"),
        ("method", "policy.restrict[0].methods", "--method NAME"),
        ("databases", "policy.restrict[0].databases", "--database LABEL"),
    ],
)
def test_what_is_not_told_is_unknown_and_the_option_is_named(unknown: str, rule: str, option: str) -> None:
    assert verdict(**{unknown: None}) == ("unknown", rule)
    assert option in "\n".join(lines(explain(POLICY, replace(KNOWN, **{unknown: None}))))


def test_a_user_by_name_is_not_promised_anything() -> None:
    assert verdict(user="alice") == ("unknown", "policy.users")
    assert "list the id" in "\n".join(lines(explain(POLICY, replace(KNOWN, user="alice"))))
    assert verdict(replace(POLICY, users=("bob",)), user="alice") == ("refused", "policy.users")
    assert verdict(replace(POLICY, users=None), user="alice")[0] == "allowed"


def test_a_consumer_counts_by_the_address_in_any_capitals() -> None:
    policy = Policy(algorithms=("x/*",), users=(3, "0x" + "ab" * 20))
    for user, answer in (("0x" + "aB" * 20, Answer.YES), ("0x" + "cd" * 20, Answer.NO)):
        finding = next(
            found
            for found in explain(policy, Question(image="x/y", user=user)).findings
            if found.rule == "policy.users"
        )
        assert finding.answer is answer
        assert "name" not in finding.text


def test_an_organization_counts_by_name_and_by_id() -> None:
    assert verdict(organization="beta")[0] == "allowed"
    assert verdict(organization="5")[0] == "unknown"  # its name may be on the list
    assert verdict(replace(POLICY, organizations=(2,)), organization="5")[0] == "refused"


def test_the_own_organization_is_known_only_when_it_is_told() -> None:
    policy = replace(POLICY, own_organization_only=True)
    assert verdict(policy) == ("unknown", "policy.own_organization_only")
    assert verdict(policy, own_organization=2)[0] == "allowed"
    assert verdict(policy, own_organization=7) == ("refused", "policy.own_organization_only")


def test_a_store_is_never_believed_to_confirm() -> None:
    store = "https://store.example.org/api"
    policy = replace(POLICY, stores=(store,))
    assert verdict(policy) == ("unknown", "policy.algorithm_stores")
    assert verdict(policy, store="https://evil.example/api") == ("refused", "policy.algorithm_stores")
    shown = explain(policy, replace(KNOWN, store=store, digest=DIGEST))
    assert "The store itself is asked when a run arrives" in "\n".join(lines(shown))
    assert verdict(replace(policy, combine=Combine.EITHER))[0] == "allowed"


def test_a_rule_with_a_digest_wants_it() -> None:
    policy = replace(POLICY, algorithms=(f"registry.example.org/approved/average@{DIGEST}",))
    assert verdict(policy) == ("unknown", "policy.algorithms")
    assert verdict(policy, digest=DIGEST)[0] == "allowed"
    assert verdict(policy, digest="sha256:" + "b" * 64)[0] == "refused"


def test_every_rule_is_shown_in_order_with_its_result() -> None:
    *findings, last = list(lines(explain(POLICY, replace(KNOWN, user="4", method="median"))))
    assert [line[:1] for line in findings if not line.startswith(" ")] == ["✓", "✓", "✗", "✓", "✓", "✗", "✓"]
    assert last == (
        "Refused: policy.users: user 4 is not listed; the names in the list do not count: "
        "vantage6 servers do not tell nodes the names of users, so a name proves nothing: list the id"
    )


# --- the command --------------------------------------------------------------------------------------------------

FILE = f"""
name: alpha
server: {{url: https://server.example.org/api, api_key_file: /not/there}}
state_dir: /var/lib/alpha
policy: {{algorithms: ['registry.example.org/approved/*', 'x/y@{DIGEST}'], users: [3]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "alpha.yaml"
    file.write_text(FILE, encoding="utf-8")
    return str(file)


def test_the_exit_code_is_0_only_when_the_task_is_allowed_for_sure(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["policy", "explain", "-c", config, "--image"]
    assert cli.main([*ask, IMAGE, "--user", "3"]) == 0
    assert "Allowed: policy.algorithms: registry.example.org/approved/*" in capsys.readouterr().out
    assert cli.main([*ask, IMAGE, "--user", "4"]) == 1
    assert "✗ policy.users: user 4 is not listed" in capsys.readouterr().out
    assert cli.main([*ask, IMAGE]) == 1
    assert "→ Say more with --user ID." in capsys.readouterr().out
    assert cli.main([*ask, "x/y", "--user", "3", "--digest", DIGEST]) == 0


def test_another_program_gets_the_findings_as_json(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(
        ["policy", "explain", "-c", config, "--json", "--image", "evil/\x1b[31mx", "--database", ""]
    )
    told = json.loads(capsys.readouterr().out)
    assert (code, told["verdict"], told["rule"]) == (1, "refused", "image")
    assert told["findings"][-1]["answer"] == "no"


def test_a_digest_that_is_none_is_wrong_usage(config: str) -> None:
    assert cli.main(["policy", "explain", "-c", config, "--image", "x", "--digest", "latest"]) == 64
    assert cli.main(["policy", "explain", "-c", config]) == 64
