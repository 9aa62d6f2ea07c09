"""The survival curve of a cohort: the central part asks for all times first, then for the counts at each."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from typing import Any

import pandas as pd
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.decorators import algorithm_client, data

from cohort.parts import members, parts

Numbers = list[float]


@data(1)
def event_times(df: pd.DataFrame, time: str, event: str) -> Numbers:
    """Return when something happened here."""
    return sorted(float(moment) for moment in df.loc[df[event] == 1, time].unique())


@data(1)
def event_table(df: pd.DataFrame, time: str, event: str, times: Numbers) -> dict[str, list[int]]:
    """Return how many were still under observation at each time, and how many of them it happened to."""
    happened = df.loc[df[event] == 1, time]
    return {
        "at_risk": [int((df[time] >= moment).sum()) for moment in times],
        "events": [int((happened == moment).sum()) for moment in times],
    }


@algorithm_client
def survival_curve(
    client: AlgorithmClient, time: str, event: str, organizations: list[int] | None = None
) -> dict[str, Any]:
    """Estimate by product of the chances to get past each event; say who took part and in which study."""
    asked = members(client, organizations)
    given = parts(client, "event_times", asked, time=time, event=event)
    times = sorted({moment for part in given for moment in part})
    tables = parts(client, "event_table", asked, time=time, event=event, times=times)
    at_risk = _added([table["at_risk"] for table in tables])
    events = _added([table["events"] for table in tables])
    return {
        "times": times,
        "at_risk": at_risk,
        "events": events,
        "survival": _curve(at_risk, events),
        "members": [client.organization.get(number)["name"] for number in asked],
        "study": client.study.get(client.study_id)["name"] if client.study_id else None,
    }


def _added(columns: list[list[int]]) -> list[int]:
    return [sum(values) for values in zip(*columns, strict=True)]


def _curve(at_risk: list[int], events: list[int]) -> Numbers:
    left, curve = 1.0, []
    for risk, happened in zip(at_risk, events, strict=True):
        left *= 1 - happened / risk
        curve.append(left)
    return curve
