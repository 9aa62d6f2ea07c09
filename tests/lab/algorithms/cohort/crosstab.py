"""How often two properties occur together, and whether they lean on each other."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from collections import Counter
from typing import Any

import pandas as pd
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.decorators import algorithm_client, data
from vantage6.algorithm.tools.exceptions import PrivacyThresholdViolation
from vantage6.algorithm.tools.util import get_env_var

from cohort.parts import members, parts

Cell = tuple[str, str]


@data(1)
def count_cells(df: pd.DataFrame, row: str, column: str) -> list[list[Any]]:
    """Count each pair of values; a cell that is smaller than the owner of the node allows is an error."""
    smallest = get_env_var("SMALLEST_CELL", default="1", as_type="int")
    counts = df.groupby([row, column]).size()
    if (counts < smallest).any():
        raise PrivacyThresholdViolation(f"a cell holds fewer than {smallest} patients")
    return [[str(first), str(second), int(count)] for (first, second), count in counts.items()]


@algorithm_client
def cross_table(
    client: AlgorithmClient, row: str, column: str, organizations: list[int] | None = None
) -> dict[str, Any]:
    """Add up the tables of all organizations."""
    cells: Counter[Cell] = Counter()
    for part in parts(client, "count_cells", members(client, organizations), row=row, column=column):
        cells.update({(first, second): count for first, second, count in part})
    return {
        "table": [[first, second, count] for (first, second), count in sorted(cells.items())],
        "total": cells.total(),
        "chi2": _chi2(cells),
    }


def _chi2(cells: Counter[Cell]) -> float:
    rows: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for (row, column), count in cells.items():
        rows[row] += count
        columns[column] += count
    expected = {
        (row, column): rows[row] * columns[column] / cells.total()
        for row in sorted(rows)
        for column in sorted(columns)
    }
    return sum((cells[cell] - value) ** 2 / value for cell, value in expected.items())
