"""Logistic regression by Newton's method: a round of subtasks for every step."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from typing import Any

import numpy as np
import pandas as pd
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.decorators import algorithm_client, data
from vantage6.algorithm.tools.util import info

from cohort.parts import members, parts


@data(1)
def newton_part(
    df: pd.DataFrame, outcome: str, predictors: list[str], coefficients: list[float]
) -> dict[str, Any]:
    """Return gradient and curvature of this organization's likelihood: sums over its patients, never a row."""
    design = np.column_stack([np.ones(len(df)), df[predictors].to_numpy(dtype=float)])
    chance = 1 / (1 + np.exp(-design @ np.array(coefficients)))
    observed = df[outcome].to_numpy(dtype=float)
    return {
        "gradient": (design.T @ (observed - chance)).tolist(),
        "curvature": (design.T @ (design * (chance * (1 - chance))[:, None])).tolist(),
        "patients": len(df),
    }


@algorithm_client
def logistic_regression(
    client: AlgorithmClient,
    outcome: str,
    predictors: list[str],
    rounds: int,
    organizations: list[int] | None = None,
) -> dict[str, Any]:
    """Take *rounds* steps from zero and return the coefficients, intercept first, with their standard errors."""
    asked = members(client, organizations)
    coefficients = np.zeros(len(predictors) + 1)
    for number in range(1, rounds + 1):
        given = parts(
            client,
            "newton_part",
            asked,
            outcome=outcome,
            predictors=predictors,
            coefficients=coefficients.tolist(),
        )
        gradient = sum(np.array(part["gradient"]) for part in given)
        curvature = sum(np.array(part["curvature"]) for part in given)
        coefficients = coefficients + np.linalg.solve(curvature, gradient)
        info(f"round {number} of {rounds} is done")
    return {
        "coefficients": coefficients.tolist(),
        "errors": np.sqrt(np.diag(np.linalg.inv(curvature))).tolist(),
        "patients": sum(part["patients"] for part in given),
    }
