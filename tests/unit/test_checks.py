"""The judgements of `node-agent check`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent import checks
from node_agent.checks import CheckResult, FolderFacts, Verdict
from node_agent.commands import folder_facts
from node_agent.config import LimitsSection
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.policy import Policy, Restriction
from node_agent.domain.ports import NodeIdentity
from node_agent.domain.task import OrganizationId
from node_agent.errors import ConfigError, EngineUnreachable, ServerUnreachable

GIB = 2**30
FOLDER = FolderFacts(path=Path("/s"), exists=True, writable=True, mode=0o700, free_bytes=500 * GIB)
ENGINE = {
    "ServerVersion": "20.10.24+dfsg1", "Driver": "overlay2", "CgroupVersion": "2", "NCPU": 4, "MemTotal": 32 * GIB,
    "MemoryLimit": True, "SwapLimit": True, "CpuCfsQuota": True, "PidsLimit": True,
}  # fmt: skip
NODE = NodeIdentity(
    node_id=1, node_name="alpha node", organization_id=OrganizationId(2), organization_name="alpha",
    collaboration_id=3, collaboration_name="study", encrypted=False,
)  # fmt: skip


def worst(results: list[CheckResult]) -> Verdict:
    return max((result.verdict for result in results), key=list(Verdict).index)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.OK),
        ({"exists": False}, Verdict.OK),
        ({"mode": 0o750}, Verdict.WARNING),
        ({"writable": False}, Verdict.FAIL),
        ({"writable": False, "exists": False}, Verdict.FAIL),
    ],
)
def test_the_state_directory_must_be_ours_alone(change: dict[str, Any], verdict: Verdict) -> None:
    assert checks.judge_folder(replace(FOLDER, **change)).verdict is verdict


@pytest.mark.parametrize(
    ("free", "verdict"), [(500 * GIB, Verdict.OK), (2 * GIB, Verdict.WARNING), (GIB // 4, Verdict.FAIL)]
)
def test_the_disk_is_judged_by_what_runs_may_write(free: int, verdict: Verdict) -> None:
    assert checks.judge_disk(replace(FOLDER, free_bytes=free), LimitsSection()).verdict is verdict


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.OK),
        ({"ServerVersion": "28.0.1"}, Verdict.OK),
        ({"ServerVersion": "19.03.1"}, Verdict.FAIL),
        ({"ServerVersion": "dev"}, Verdict.FAIL),
        ({"PidsLimit": False}, Verdict.FAIL),
        ({"SwapLimit": False}, Verdict.FAIL),
        ({"NCPU": 1}, Verdict.FAIL),
        ({"MemTotal": 8 * GIB}, Verdict.WARNING),
    ],
)
def test_the_engine_must_be_recent_enforce_limits_and_be_large_enough(
    change: dict[str, Any], verdict: Verdict
) -> None:
    results = checks.judge_engine({**ENGINE, **change}, LimitsSection())
    assert worst(results) is verdict
    assert all(result.todo for result in results if result.verdict is not Verdict.OK)


def test_a_missing_firewall_rule_is_a_warning_and_the_isolation_check_decides() -> None:
    assert checks.judge_firewall(loaded=True, reason="", accepted=False).verdict is Verdict.OK
    missing = checks.judge_firewall(loaded=False, reason="nft is not installed", accepted=False)
    assert missing.verdict is Verdict.WARNING
    assert "network ensure" in missing.todo
    assert checks.judge_firewall(loaded=False, reason="x", accepted=True).verdict is Verdict.WARNING


def test_what_is_open_fails_unless_it_is_accepted() -> None:
    assert checks.judge_isolation([], []).verdict is Verdict.OK
    assert checks.judge_isolation([], ["host"]).verdict is Verdict.WARNING
    refused = checks.judge_isolation(["neighbour"], ["host"])
    assert (refused.verdict, refused.faults) == (Verdict.FAIL, ("neighbour",))


def test_a_database_that_cannot_be_read_fails_with_the_reason_and_the_remedy() -> None:
    database = Database(label="a", type=DatabaseType.CSV, uri="/d/a.csv")
    assert checks.judge_database(database, None).verdict is Verdict.OK
    failed = checks.judge_database(database, "cannot be read; run: chgrp …")
    assert (failed.verdict, failed.found) == (Verdict.FAIL, "cannot be read; run: chgrp …")


def test_the_address_of_a_service_is_not_shown() -> None:
    database = Database(label="a", type=DatabaseType.SQL, uri="x://u:hunter2@h")
    assert "hunter2" not in repr(checks.judge_database(database, None))


def test_nothing_to_compute_on_and_nothing_allowed_deserve_a_look() -> None:
    assert checks.judge_databases([])[0].verdict is Verdict.WARNING
    assert checks.judge_policy(Policy()).verdict is Verdict.WARNING
    assert checks.judge_policy(Policy(algorithms=("x/*",))).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(), "nothing runs"),
        (Policy(algorithms=()), "policy.algorithms is an empty list"),
        (Policy(algorithms=("*",)), "policy.algorithms: * says nothing about where"),
        (Policy(algorithms=("*/average",)), "says nothing about where"),
        (Policy(stores=("https://*/api",)), "policy.algorithm_stores: https://*/api says nothing"),
        (Policy(stores=("http://store.example.org/api",)), "is not https"),
        (Policy(algorithms=("x/*",), users=()), "policy.users is an empty list: nobody"),
        (Policy(algorithms=("x/*",), organizations=()), "policy.organizations is an empty list: nobody"),
        (Policy(algorithms=("x/*",), users=(3, "alice")), "policy.users holds names"),
        (Policy(algorithms=("*",), restrictions=(Restriction(image="x/*", methods=()),)), "another name"),
    ],
)
def test_a_policy_that_may_not_mean_what_it_seems_to_is_told(policy: Policy, words: str) -> None:
    result = checks.judge_policy(policy)
    assert result.verdict is Verdict.WARNING
    assert any(words in fault for fault in result.faults)


def test_the_state_of_the_key_is_told() -> None:
    assert checks.judge_identity(replace(NODE, encrypted=True)).verdict is Verdict.OK
    assert "not encrypted" in checks.encryption_fine(None).found
    assert "next start uploads it" in checks.encryption_fine("").found
    assert "12ab-34cd" in checks.encryption_fine("12ab-34cd").found
    assert "12ab-34cd in /k.pem" in checks.key_fine(Path("/k.pem"), "12ab-34cd").found


@pytest.mark.parametrize(
    ("server", "words"),
    [(1000.0, "agrees"), (900.0, "100 s ahead of"), (1100.0, "100 s behind"), (None, "did not say")],
)
def test_the_clock_is_compared_with_the_servers(server: float | None, words: str) -> None:
    assert words in checks.judge_clock(server, 1000.0).found


def test_an_error_keeps_its_faults_and_its_hint_or_gets_one() -> None:
    assert checks.failed("x", ConfigError("m", hint="h", faults=("f",))).faults == ("f",)
    assert checks.failed("x", EngineUnreachable("m", hint="h"), todo="t").todo == "h"
    assert checks.failed("x", ServerUnreachable("m"), todo="t").todo == "t"


def test_what_is_not_looked_at_is_no_failure() -> None:
    assert checks.skipped("x", "because").verdict is Verdict.WARNING


def test_a_folder_not_made_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    facts = folder_facts(tmp_path / "a" / "b")
    assert not facts.exists
    assert facts.writable
    assert facts.free_bytes > 0
    assert folder_facts(tmp_path).exists


# --- room for runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "verdict"), [(GIB - 1, Verdict.FAIL), (GIB, Verdict.OK)])
def test_a_disk_of_the_engine_on_which_no_run_would_begin_fails(free: int, verdict: Verdict) -> None:
    found = checks.judge_engine_disk(Path("/var/lib/docker"), free, LimitsSection())
    assert found.verdict is verdict
    assert ("limits.min_free_disk" in found.found) == (verdict is Verdict.FAIL)


def test_a_disk_on_which_no_run_would_begin_fails_with_the_setting() -> None:
    found = checks.judge_disk(replace(FOLDER, free_bytes=GIB - 1), LimitsSection())
    assert found.verdict is Verdict.FAIL
    assert "limits.min_free_disk" in found.found


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (LimitsSection(memory="4GiB", concurrent_runs=4), ""),
        (LimitsSection(memory="64GiB"), "limits.memory is 64 GiB"),
        (LimitsSection(total_memory="64GiB"), "limits.total_memory is 64 GiB"),
        (LimitsSection(memory="16GiB", concurrent_runs=4), "1 runs of 16 GiB fit into the 31 GiB"),
        (LimitsSection(memory="4GiB", total_memory="8GiB", concurrent_runs=4), "2 runs of 4 GiB fit"),
    ],
)
def test_memory_that_the_machine_lacks_is_said(limits: LimitsSection, said: str) -> None:
    capacity = checks.judge_engine(ENGINE, limits)[-1]
    assert capacity.name == "capacity"
    assert capacity.verdict is (Verdict.WARNING if said else Verdict.OK)
    assert said in capacity.found
