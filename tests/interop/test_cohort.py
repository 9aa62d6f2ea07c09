"""Whole analyses on three nodes, made with the official tools, beside what one sees with all patients in one place."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.interop.stage import Stage, SubmittedTask
from tests.lab.agents import AgentProcess, agents_for
from tests.lab.images import ALGORITHMS, algorithm_image
from tests.lab.samples import write_cohorts

pytestmark = pytest.mark.interop

WITHIN = 150
PREDICTORS = ["age", "died"]
ROUNDS = 3
STUDY = "alpha and gamma"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_cohorts(tmp_path_factory.mktemp("cohorts"))


@pytest.fixture(scope="module")
def pooled(cohorts: dict[str, Path]) -> pd.DataFrame:
    return pd.concat(pd.read_csv(path) for path in cohorts.values())


@pytest.fixture(scope="module")
def agents(real: Stage, cohorts: dict[str, Path]) -> Iterator[dict[str, AgentProcess]]:
    sources = {name: {"default": path} for name, path in cohorts.items()}
    with agents_for(real.server, sources, {"algorithm_env": {"SMALLEST_CELL": "5"}}) as running:
        yield running


@pytest.fixture(scope="module")
def tasks(real: Stage, agents: dict[str, AgentProcess]) -> dict[str, SubmittedTask]:
    """All central parts at the same time, at alpha: they share the nodes' slots as a busy day would have it."""
    image = algorithm_image(real.docker, "cohort", ALGORITHMS / "cohort")
    study = create_study(real, "alpha", "gamma")

    def submitted(method: str, place: Mapping[str, int], **arguments: Any) -> SubmittedTask:
        return SubmittedTask(create_task(real, image, method, place, arguments), real.client)

    everyone = {"collaboration": real.server.collaboration_id}
    return {
        "cross_table": submitted("cross_table", everyone, row="arm", column="stage"),
        "survival": submitted("survival_curve", {"study": study}, time="months", event="died"),
        "regression": submitted(
            "logistic_regression", everyone, outcome="relapsed", predictors=PREDICTORS, rounds=ROUNDS
        ),
        "look_around": submitted("look_around", everyone),
        "small_cells": submitted("count_cells", everyone, row="arm", column="age"),
    }


def create_study(real: Stage, *organizations: str) -> int:
    study = real.client.call(
        "study.create",
        name=STUDY,
        collaboration=real.server.collaboration_id,
        organizations=[real.server.organization_ids[name] for name in organizations],
    )
    return int(study["id"])


def create_task(
    real: Stage, image: str, method: str, place: Mapping[str, int], arguments: Mapping[str, Any]
) -> int:
    task = real.client.call(
        "task.create",
        organizations=[real.server.organization_ids["alpha"]],
        name=method,
        description="",
        image=image,
        input_={"method": method, "kwargs": dict(arguments)},
        databases=[{"label": "default"}],
        **place,
    )
    assert "id" in task, task
    return int(task["id"])


def test_a_cross_table_is_that_of_all_patients(tasks: dict[str, SubmittedTask], pooled: pd.DataFrame) -> None:
    found = tasks["cross_table"].result(within=WITHIN)
    table = pd.crosstab(pooled["arm"], pooled["stage"])
    assert found["table"] == [
        [arm, stage, int(table.loc[arm, stage])] for arm in table.index for stage in table.columns
    ]
    assert found["total"] == len(pooled)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / len(pooled)
    assert found["chi2"] == pytest.approx(
        float(((table - expected) ** 2 / expected).to_numpy().sum()), rel=1e-9
    )


def test_a_survival_curve_of_a_study_is_that_of_its_members_patients(
    real: Stage, tasks: dict[str, SubmittedTask], cohorts: dict[str, Path]
) -> None:
    found = tasks["survival"].result(within=WITHIN)
    assert found["members"] == ["alpha", "gamma"]
    assert found["study"] == STUDY
    members = pd.concat(pd.read_csv(cohorts[name]) for name in ("alpha", "gamma"))
    times, at_risk, events = counted(members)
    assert found["times"] == times
    assert found["at_risk"] == at_risk
    assert found["events"] == events
    chances = 1 - np.array(events) / np.array(at_risk)
    assert found["survival"] == pytest.approx(np.cumprod(chances).tolist(), rel=1e-9)
    assert {run["organization"]["id"] for run in runs_below(real, tasks["survival"].id)} == {
        real.server.organization_ids[name] for name in ("alpha", "gamma")
    }


def counted(patients: pd.DataFrame) -> tuple[list[float], list[int], list[int]]:
    deaths = patients.loc[patients["died"] == 1, "months"].value_counts().sort_index()
    at_risk = [int((patients["months"] >= moment).sum()) for moment in deaths.index]
    return [float(moment) for moment in deaths.index], at_risk, [int(count) for count in deaths]


def runs_below(real: Stage, task: int) -> list[dict[str, Any]]:
    subtasks = real.client.call("task.list", parent=task)["data"]
    return [run for subtask in subtasks for run in real.client.runs(subtask["id"])]


def test_a_regression_with_several_rounds_of_subtasks_is_that_of_all_patients(
    tasks: dict[str, SubmittedTask], pooled: pd.DataFrame
) -> None:
    found = tasks["regression"].result(within=WITHIN)
    coefficients, errors = newton(pooled)
    assert found["patients"] == len(pooled)
    assert found["coefficients"] == pytest.approx(coefficients, rel=1e-9)
    assert found["errors"] == pytest.approx(errors, rel=1e-9)


def newton(patients: pd.DataFrame) -> tuple[list[float], list[float]]:
    design = np.column_stack([np.ones(len(patients)), patients[PREDICTORS].to_numpy(dtype=float)])
    weights, curvature = np.zeros(design.shape[1]), np.eye(design.shape[1])
    for _ in range(ROUNDS):
        chance = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ np.diag(chance * (1 - chance)) @ design
        weights = weights + np.linalg.inv(curvature) @ design.T @ (patients["relapsed"] - chance)
    return weights.tolist(), np.sqrt(np.diag(np.linalg.inv(curvature))).tolist()


def test_an_algorithm_keeps_to_the_threshold_the_owner_of_the_node_sets(
    tasks: dict[str, SubmittedTask],
) -> None:
    run = tasks["small_cells"].ended(within=WITHIN)
    assert run["status"] == "crashed"
    assert "fewer than 5 patients" in run["log"]


def test_an_algorithm_that_looks_around_finds_what_authors_rely_on_and_nothing_else(
    tasks: dict[str, SubmittedTask],
) -> None:
    found = tasks["look_around"].result(within=WITHIN)
    outside, names = found.pop("outside"), found.pop("names")
    assert found == {
        "method": "look_around",
        "output_is_there": True,
        "output_can_be_written_twice": True,
        "beside_the_input": True,
        "token_is_a_jwt": 2,
        "databases": {"default": True},
        "home": True,
        "cache": True,
        "shared_memory": True,
        "version": 200,
        # Nobody published a port: there is no network between algorithms here, and the server says so in its own way.
        "addresses": [],
        "own_part": ["from the parent"],
    }
    assert "Error" in outside
    assert "gaierror" in names
