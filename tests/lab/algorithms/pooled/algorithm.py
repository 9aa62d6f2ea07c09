"""Statistics of one column, over all data sets of a job together, with `ocean-runner`.

Parameters say which column and how many digits; the result is one JSON file.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ocean_runner import Algorithm, Config
from pydantic import BaseModel


class Parameters(BaseModel):
    """What a consumer may ask for."""

    column: str
    digits: int = 2


algorithm = Algorithm.create(Config(custom_input=Parameters))


@algorithm.run
def pooled(job: Any) -> dict[str, Any]:
    """Read every file of every data set."""
    details = job.job_details
    asked = details.input_parameters
    values = [value for _, file in details.inputs() for value in column(file, asked.column)]
    job.logger.info("read %d values", len(values))
    return {
        "data_sets": sorted(details.metadata),
        "names": sorted(document.metadata.name for document in details.metadata.values()),
        "count": len(values),
        "mean": round(sum(values) / len(values), asked.digits),
    }


@algorithm.save_results
def save(job: Any, result: dict[str, Any], outputs: Path) -> None:
    """Write the one file."""
    (outputs / "pooled.json").write_text(json.dumps(result))


def column(file: Path, name: str) -> Iterator[float]:
    """Give the values of a column that are there."""
    with file.open(newline="") as table:
        for row in csv.DictReader(table):
            if row[name]:
                yield float(row[name])


if __name__ == "__main__":
    algorithm()
