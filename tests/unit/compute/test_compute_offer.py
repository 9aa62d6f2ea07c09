"""What the settings offer: data sets, algorithms, environments, under which DIDs, and what they may meet."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent import cli
from node_agent.compute import offer
from node_agent.compute.access import Access, DenyEverybody, ListedAddresses, Question
from node_agent.compute.admitting import Admitted, admit
from node_agent.compute.offer import assets_of, checksum_of, doubts_about, environments_of
from node_agent.compute.signatures import Address
from node_agent.compute.wishes import Refused, Wish, WishedAlgorithm, WishedDataSet
from node_agent.config import Settings, load
from node_agent.domain.assets import DataSet, container_checksum, derived_did
from node_agent.errors import ConfigError

OWNER = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
ANNE = Address("0x" + "a" * 40)
DIGEST = "sha256:" + "0" * 64
DID, OTHER = "did:op:" + "ab" * 32, "did:op:" + "cd" * 32
LET_IN = ListedAddresses(["*"])


class Owner:
    """The owner of a node, with a file, a folder and a database server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "patients.csv").write_text("age\n1\n")
        (folder / "scans").mkdir()
        self.code = folder / "mean.py"
        self.code.write_text("print(1)\n")

    def writes(self, compute: dict[str, Any], **more: Any) -> Path:
        usual = {
            "name": "alpha",
            "server": {"url": "https://server.example.org/api", "api_key": "key"},
            "state_dir": str(self.folder / "state"),
            "databases": [
                {"label": "patients", "type": "csv", "uri": str(self.folder / "patients.csv")},
                {"label": "scans", "type": "folder", "uri": str(self.folder / "scans")},
                {"label": "omop", "type": "omop", "uri": "postgresql://h/omop"},
            ],
        }
        file = self.folder / "alpha.yaml"
        file.write_text(yaml.safe_dump(usual | more | {"compute_api": compute}), encoding="utf-8")
        return file

    def offers(self, compute: dict[str, Any], **more: Any) -> Settings:
        return load(self.writes(compute, **more))

    def algorithm(self, **facts: Any) -> dict[str, Any]:
        return {"owner": OWNER, "image": "x/mean:1", "digest": DIGEST, "entrypoint": "python3 $ALGO", **facts}


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


def labelled(settings: Settings) -> dict[str, DataSet]:
    return {data_set.label: data_set for data_set in assets_of(settings).data_sets.values()}


# --- DIDs -----------------------------------------------------------------------------------------------------


def test_a_data_set_has_its_own_did_or_one_of_the_agents_name_and_its_label(owner: Owner) -> None:
    found = labelled(owner.offers({"data_sets": [{"label": "patients", "did": DID}, {"label": "scans"}]}))
    assert found["patients"].did == DID
    assert found["scans"].did == derived_did("alpha", "scans")
    renamed = labelled(owner.offers({"data_sets": [{"label": "scans"}]}, name="beta"))
    assert renamed["scans"].did == derived_did("beta", "scans") != found["scans"].did


def test_an_algorithm_keeps_its_did_when_only_its_content_is_newer(owner: Owner) -> None:
    def did(**facts: Any) -> str:
        (found,) = assets_of(owner.offers({"algorithms": [owner.algorithm(**facts)]})).algorithms
        return found

    usual = did()
    assert did(digest="sha256:" + "1" * 64) == usual
    assert did(did=DID) == DID
    assert len({usual, did(image="x/other"), did(entrypoint="sh"), did(code=str(owner.code))}) == 4


def test_what_a_configuration_says_of_a_data_set_comes_out(owner: Owner) -> None:
    said = {
        "label": "patients",
        "service_id": 7,
        "consumers": [OWNER],
        "denied_consumers": [ANNE],
        "trusted_algorithms": [{"did": DID, "files_checksum": "ab" * 32}],
        "trusted_publishers": ["*"],
        "raw_algorithms": True,
        "share_log": True,
    }
    data_set = labelled(owner.offers({"data_sets": [said]}))["patients"]
    assert (data_set.service_id, data_set.consumers) == ("7", (OWNER.lower(),))
    assert (data_set.denied_consumers, data_set.trusted_publishers) == ((ANNE,), ("*",))
    assert (data_set.trusted_algorithms[0].did, data_set.trusted_algorithms[0].files_checksum) == (
        DID,
        "ab" * 32,
    )
    assert (data_set.raw_algorithms, data_set.share_log) == (True, True)


def test_files_and_folders_can_be_shown_as_files_and_a_server_cannot(owner: Owner) -> None:
    found = labelled(
        owner.offers({"data_sets": [{"label": label} for label in ("patients", "scans", "omop")]})
    )
    assert {label: data_set.as_files for label, data_set in found.items()} == {
        "patients": True,
        "scans": True,
        "omop": False,
    }


# --- algorithms -----------------------------------------------------------------------------------------------


def test_code_is_hashed_and_a_tag_is_left_out(owner: Owner) -> None:
    assets = assets_of(owner.offers({"algorithms": [owner.algorithm(code=str(owner.code))]}))
    (algorithm,) = assets.algorithms.values()
    assert algorithm.files_checksum == sha256(b"print(1)\n").hexdigest()
    assert algorithm.container_checksum == container_checksum("python3 $ALGO", DIGEST)
    assert (algorithm.image, algorithm.owner) == ("x/mean", OWNER.lower())


def test_code_that_is_gone_at_the_start_is_told(owner: Owner) -> None:
    settings = owner.offers({"algorithms": [owner.algorithm(code=str(owner.code))]})
    owner.code.unlink()
    with pytest.raises(ConfigError, match=r"mean\.py of an algorithm is no file"):
        assets_of(settings)


def test_only_so_much_code_is_read(owner: Owner, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(offer.MAX_CODE)
        assert len(checksum_of(huge)) == 64
        file.truncate(offer.MAX_CODE + 1)
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        checksum_of(huge)


# --- environments ---------------------------------------------------------------------------------------------


def test_without_any_there_is_one_environment_as_large_as_the_limits(owner: Owner) -> None:
    settings = owner.offers({}, limits={"memory": "1GiB", "run_time": "1h"})
    (environment,) = environments_of(settings)
    assert (environment.id, environment.memory, environment.longest) == ("default", 2**30, 3600)
    assert (environment.cpus, environment.disk) == (settings.limits.cpus, settings.limits.output_size)
    assert (environment.max_jobs, environment.keep_results) == (settings.limits.concurrent_runs, 7 * 86_400)


def test_an_environment_is_what_it_says_and_else_the_limits(owner: Owner) -> None:
    said = {"id": "small", "cpus": 0.5, "memory": "64MiB", "max_job_time": "1m", "keep_results": "1h"}
    small, other = environments_of(owner.offers({"environments": [said, {"id": "other", "max_jobs": 1}]}))
    assert (small.id, small.cpus, small.memory, small.longest) == ("small", 0.5, 64 * 2**20, 60)
    assert (small.max_jobs, small.keep_results) == (4, 3600)
    assert (other.id, other.max_jobs, other.cpus) == ("other", 1, 2.0)


# --- what may meet --------------------------------------------------------------------------------------------


def admitted(settings: Settings, label: str, algorithm: str, *, access: Access = LET_IN) -> Admitted:
    data_set = WishedDataSet(name=label, service_id="0", order="order")
    wished = WishedAlgorithm(name=algorithm, service_id="0", custom={"method": "mean"})
    return admit(
        Wish(data_sets=(data_set,), algorithm=wished), assets_of(settings), consumer=ANNE, access=access
    )


@pytest.mark.parametrize(
    ("label", "contract", "refused"),
    [
        ("patients", "ocean", False),
        ("patients", "vantage6", False),
        ("omop", "ocean", True),
        ("omop", "vantage6", False),
    ],
)
def test_what_cannot_be_shown_as_files_is_for_vantage6_algorithms_only(
    label: str, contract: str, refused: bool, owner: Owner
) -> None:
    settings = owner.offers(
        {
            "data_sets": [{"label": label, "trusted_algorithms": [{"did": "*"}]}],
            "algorithms": [owner.algorithm(did=DID, contract=contract)],
        }
    )
    if not refused:
        assert admitted(settings, label, DID).data_sets[0].label == label
        return
    with pytest.raises(Refused) as caught:
        admitted(settings, label, DID)
    assert caught.value.body == {"error": {"dataset.serviceId": "service_not_access_compute"}}


def test_a_job_with_its_own_code_gets_no_database_server(owner: Owner) -> None:
    settings = owner.offers({"data_sets": [{"label": "omop", "raw_algorithms": True}]})
    meta = {
        "rawcode": "print('hello world')",
        "container": {"entrypoint": "python $ALGO", "image": "x/python", "checksum": DIGEST},
    }
    wish = Wish(
        data_sets=(WishedDataSet(name="omop", service_id="0", order="order"),),
        algorithm=WishedAlgorithm(meta=meta),
    )
    with pytest.raises(Refused) as caught:
        admit(wish, assets_of(settings), consumer=ANNE, access=LET_IN)
    assert caught.value.message == "service_not_access_compute"


def test_nobody_is_let_in_until_the_owner_says_so() -> None:
    data_set = DataSet(did=derived_did("a"), label="a", service_id="0")
    question = Question(consumer=ANNE, data_set=data_set, algorithm="raw", order="", environment="")
    assert DenyEverybody().right_to(question) is None
    assert ListedAddresses([]).right_to(question) is None
    assert ListedAddresses([OWNER.lower()]).right_to(question) is None
    assert ListedAddresses([ANNE]).right_to(question) == f"address:{ANNE}"
    assert LET_IN.right_to(question) == f"address:{ANNE}"


# --- what the owner is told -----------------------------------------------------------------------------------


def test_an_offer_that_nobody_can_use_is_told(owner: Owner) -> None:
    settings = owner.offers(
        {
            "data_sets": [
                {"label": "patients"},
                {"label": "scans", "trusted_algorithms": [{"did": OTHER}, {"did": DID}, {"did": "*"}]},
                {"label": "omop", "raw_algorithms": True},
            ],
            "algorithms": [owner.algorithm(did=DID)],
        }
    )
    assert list(doubts_about(assets_of(settings))) == [
        "patients trusts no algorithm: no job can use it",
        f"scans trusts {OTHER}, which is no algorithm of the catalogue",
        "omop lies behind a server, and only vantage6 algorithms could use it: code of jobs cannot",
    ]


@pytest.fixture
def shown(owner: Owner, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `node-agent offer` shows."""

    def show(compute: dict[str, Any], *options: str) -> str:
        assert cli.main(["offer", "-c", str(owner.writes(compute)), *options]) == 0
        return capsys.readouterr().out

    return show


def test_the_offer_is_shown_with_every_did(shown: Callable[..., str], owner: Owner) -> None:
    compute = {
        "listen": "127.0.0.1:8030",
        "data_sets": [{"label": "patients", "trusted_algorithms": [{"did": DID}]}],
        "algorithms": [owner.algorithm(did=DID, code=str(owner.code))],
    }
    text = shown(compute)
    assert "listens  127.0.0.1:8030" in text
    assert f"did                 {derived_did('alpha', 'patients')}" in text
    assert f"did                 {DID}" in text
    facts = json.loads(shown(compute, "--json"))
    assert facts["data_sets"][0]["did"] == derived_did("alpha", "patients")
    assert facts["algorithms"][0]["files_checksum"] == sha256(b"print(1)\n").hexdigest()
    assert [environment["memory"] for environment in facts["environments"]] == ["4GiB"]


def test_an_offer_of_nothing_is_shown_as_such(shown: Callable[..., str]) -> None:
    text = shown({})
    assert "nowhere: it is off" in text
    assert "data sets  none" in text


def test_code_that_cannot_be_read_keeps_nobody_from_seeing_the_offer(
    shown: Callable[..., str], owner: Owner
) -> None:
    owner.code.unlink()
    facts = json.loads(shown({"algorithms": [owner.algorithm(code=str(owner.code))]}, "--json"))
    assert "is no file" in facts["algorithms"][0]["files_checksum"]
