"""What `node-agent check` and a start say of the compute API: packages, certificate, who decides, what is offered."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent.checks import CheckResult, Verdict
from node_agent.compute.readiness import (
    check_access,
    check_certificate,
    check_offer,
    check_policy,
    require_certificate,
    require_command,
    require_packages,
    require_ready,
)
from node_agent.config import Settings, load
from node_agent.config.compute import TlsSection
from node_agent.domain.assets import derived_did
from node_agent.errors import ConfigError
from tests.conftest import NOBODY
from tests.doubles.certificate import OwnCertificate, own_certificate

OWNER = "0x" + "a" * 40
DIGEST = "sha256:" + "0" * 64
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def settings_with(compute: dict[str, Any], folder: Path, **more: Any) -> Settings:
    (folder / "patients.csv").write_text("age\n1\n")
    file = folder / "alpha.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "alpha",
                "server": {"url": "https://server.example.org/api", "api_key": "key"},
                "state_dir": str(folder / "state"),
                "databases": [{"label": "patients", "type": "csv", "uri": str(folder / "patients.csv")}],
                "compute_api": compute,
                **more,
            }
        )
    )
    return load(file)


def tls(own: OwnCertificate) -> TlsSection:
    return TlsSection.model_construct(certificate=own.chain, key=own.key)


# --- packages -------------------------------------------------------------------------------------------------


def test_packages_that_are_missing_are_named_with_what_installs_them() -> None:
    with pytest.raises(ConfigError, match="not installed: cheroot, pycryptodome") as caught:
        require_packages(lambda _: None)
    assert caught.value.hint == "Install them: pip install 'node-agent[compute]'"


def test_packages_that_are_there_are_no_fault() -> None:
    require_packages()


# --- the certificate ------------------------------------------------------------------------------------------


def test_a_certificate_that_fits_its_key_is_good_for_so_many_days(tmp_path: Path) -> None:
    result = check_certificate(tls(own_certificate(tmp_path, days=100.5)))
    assert (result.verdict, result.found.endswith("fits its key, and holds for 100 days")) == (
        Verdict.OK,
        True,
    )


@pytest.mark.parametrize(
    ("days", "verdict", "text"), [(3, Verdict.WARNING, "holds for"), (-2.5, Verdict.FAIL, "ended 2 days ago")]
)
def test_a_certificate_that_ends_is_told(days: float, verdict: Verdict, text: str, tmp_path: Path) -> None:
    result = check_certificate(tls(own_certificate(tmp_path, days=days)))
    assert (result.verdict, text in result.found) == (verdict, True)
    assert result.todo.startswith("Renew it")


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    one, other = own_certificate(tmp_path, name="one"), own_certificate(tmp_path, name="other")
    result = check_certificate(tls(OwnCertificate(one.chain, other.key)))
    assert (result.verdict, "are no certificate with its key" in result.found) == (Verdict.FAIL, True)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are no certificate with its key"):
        require_certificate(tls(own_certificate(tmp_path, passphrase=b"hidden")))


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    own = own_certificate(tmp_path)
    own.chain.write_text("nothing")
    with pytest.raises(ConfigError, match="are no certificate with its key"):
        require_certificate(tls(own))


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    own = own_certificate(tmp_path)
    own.key.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        require_certificate(tls(own))


def test_a_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    own = own_certificate(tmp_path)
    own.key.chmod(0o644)
    with pytest.raises(ConfigError, match="open to every user") as caught:
        require_certificate(tls(own))
    assert caught.value.hint == f"Run: chmod o= {own.key}"


# --- who decides ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Path:
    file = tmp_path / "decide"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_a_command_of_ours_is_fine(command: Path) -> None:
    require_command(command)


def test_a_command_that_cannot_run_is_refused(command: Path, tmp_path: Path) -> None:
    command.chmod(0o644)
    for path in (command, tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="is no program that this user may run"):
            require_command(path)


def test_a_command_that_others_may_write_is_refused(command: Path) -> None:
    command.chmod(0o757)
    with pytest.raises(ConfigError, match="may be written by every user") as caught:
        require_command(command)
    assert caught.value.hint.startswith(f"Run: chmod o-w {command}")


def test_a_command_in_a_folder_that_others_may_write_is_refused(command: Path) -> None:
    command.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="may be written by every user"):
        require_command(command)
    # nobody may exchange there what belongs to another
    command.parent.chmod(0o1777)
    require_command(command)


def test_a_link_is_no_better_than_the_folder_it_lies_in(command: Path, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "link").symlink_to(command)
    require_command(folder / "link")
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="open may be written by every user"):
        require_command(folder / "link")


@as_root
def test_a_command_of_another_user_is_refused(command: Path) -> None:
    os.chown(command, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=f"belongs to the user {NOBODY}"):
        require_command(command)


@pytest.mark.parametrize(
    ("compute", "verdict", "text"),
    [
        (
            {"data_sets": [{"label": "patients"}]},
            Verdict.WARNING,
            "access is deny: nobody may use a data set",
        ),
        ({}, Verdict.OK, "decided by deny"),
        ({"access": "addresses"}, Verdict.WARNING, "access is addresses: nobody may"),
        ({"access": "addresses", "addresses": ["*"]}, Verdict.OK, "decided by addresses"),
        ({"access": "grants"}, Verdict.OK, "decided by grants"),
        ({"access": "command", "command": "/none"}, Verdict.FAIL, "/none is no program"),
        ({"access": "callback", "callback": "https://127.0.0.1/"}, Verdict.OK, "decided by callback"),
    ],
    ids=str,
)
def test_who_decides_is_told(compute: dict[str, Any], verdict: Verdict, text: str, tmp_path: Path) -> None:
    (result,) = check_access(settings_with(compute, tmp_path).compute_api)
    assert (result.verdict, text in result.found) == (verdict, True)


def test_authorities_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "authorities.pem").write_text("nothing")
    compute = {
        "access": "callback",
        "callback": "https://127.0.0.1/",
        "callback_ca_bundle": str(tmp_path / "authorities.pem"),
    }
    (result,) = check_access(settings_with(compute, tmp_path).compute_api)
    assert (result.verdict, "authorities.pem cannot be used" in result.found) == (Verdict.FAIL, True)


# --- what is offered ------------------------------------------------------------------------------------------


def offered(compute: dict[str, Any], folder: Path) -> list[CheckResult]:
    return list(check_offer(settings_with(compute, folder)))


def test_every_data_set_and_algorithm_is_shown_with_its_did(tmp_path: Path) -> None:
    did = "did:op:" + "ab" * 32
    algorithm = {"owner": OWNER, "image": "x/mean", "digest": DIGEST, "did": did}
    data_set = {"label": "patients", "trusted_algorithms": [{"did": did}]}
    results = offered({"data_sets": [data_set], "algorithms": [algorithm]}, tmp_path)
    assert [(result.name, result.verdict, result.found) for result in results] == [
        ("data set", Verdict.OK, f"patients is {derived_did('alpha', 'patients')}"),
        ("algorithm", Verdict.OK, f"x/mean is {did}"),
    ]


def test_an_offer_that_nobody_can_use_is_a_warning(tmp_path: Path) -> None:
    *_, last = offered({"data_sets": [{"label": "patients"}]}, tmp_path)
    assert (last.verdict, last.faults) == (
        Verdict.WARNING,
        ("patients trusts no algorithm: no job can use it",),
    )
    (nothing,) = offered({}, tmp_path)
    assert (nothing.verdict, nothing.found) == (Verdict.WARNING, "no data set is offered")


def test_code_that_cannot_be_read_fails(tmp_path: Path) -> None:
    code = tmp_path / "mean.py"
    code.touch()
    algorithm = {"owner": OWNER, "image": "x/mean", "digest": DIGEST, "code": str(code)}
    settings = settings_with({"algorithms": [algorithm]}, tmp_path)
    code.unlink()
    (result,) = check_offer(settings)
    assert (result.verdict, "is no file" in result.found) == (Verdict.FAIL, True)


ALGORITHM = {"owner": OWNER, "image": "x/mean", "digest": DIGEST}


@pytest.mark.parametrize(
    ("policy", "doubts"),
    [
        ({"algorithms": ["x/*"]}, []),
        ({"algorithms": [f"x/mean@{DIGEST}"], "users": [3, OWNER]}, []),
        ({"algorithm_stores": ["*"]}, []),
        ({"algorithms": ["y/*"]}, ["x/mean of the catalogue does not run: policy.algorithms"]),
        ({}, ["x/mean of the catalogue does not run"]),
        ({"algorithms": ["x/*"], "users": [3]}, ["policy.users names no address: no job runs"]),
        ({"algorithms": ["x/*"], "organizations": [3]}, ["policy.organizations or"]),
        ({"algorithms": ["x/*"], "own_organization_only": True}, ["policy.organizations or"]),
    ],
    ids=str,
)
def test_a_policy_that_leaves_jobs_no_way_is_told(
    policy: dict[str, Any], doubts: list[str], tmp_path: Path
) -> None:
    results = list(check_policy(settings_with({"algorithms": [ALGORITHM]}, tmp_path, policy=policy)))
    found = [fault for result in results for fault in result.faults]
    assert len(found) == len(doubts)
    assert [fault for fault, begin in zip(found, doubts, strict=True) if not fault.startswith(begin)] == []
    assert {result.verdict for result in results} <= {Verdict.WARNING}


# --- the start ------------------------------------------------------------------------------------------------


def test_a_start_refuses_what_would_be_unsafe(tmp_path: Path, command: Path) -> None:
    own = own_certificate(tmp_path)
    compute = {
        "listen": "0.0.0.0:8030",
        "tls": {"certificate": str(own.chain), "key": str(own.key)},
        "access": "command",
        "command": str(command),
    }
    settings = settings_with(compute, tmp_path)
    require_ready(settings)
    command.chmod(0o777)
    with pytest.raises(ConfigError, match="may be written by every user"):
        require_ready(settings)
    own.key.chmod(0o604)
    with pytest.raises(ConfigError, match="open to every user"):
        require_ready(settings)


def test_an_api_that_is_off_needs_nothing(tmp_path: Path) -> None:
    require_ready(settings_with({"access": "command", "command": "/none"}, tmp_path))
