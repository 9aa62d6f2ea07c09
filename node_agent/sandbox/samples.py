"""Sample data: patients of made-up hospitals, the same on every machine and in every run.

Owns the files and what is in them. Must not know who reads them.
"""

import csv
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final

COLUMNS: Final = ("patient", "sex", "age", "weight", "days_in_hospital")
_FEWEST, _MOST = 60, 240


def write_samples(folder: Path, hospitals: Iterable[str]) -> dict[str, Path]:
    """Write one CSV file for each hospital and return the files by name."""
    return {name: _write(folder / f"{name}.csv", name) for name in hospitals}


def _write(path: Path, hospital: str) -> Path:
    dice = random.Random(f"sandbox {hospital}")  # noqa: S311 - made-up patients, not secrets
    # Hospitals differ, so that a federated average is not the plain mean of their averages.
    typical_age = dice.uniform(45, 75)
    patients = dice.randint(_FEWEST, _MOST)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(_patient(dice, f"{hospital}-{number}", typical_age) for number in range(patients))
    path.chmod(0o644)  # algorithms read it as a user of their own
    return path


def _patient(dice: random.Random, name: str, typical_age: float) -> tuple[str, str, int, float | str, int]:
    age = min(99, max(18, round(dice.gauss(typical_age, 12))))
    # One weight in twenty was never taken: an empty cell must not count.
    weight = "" if dice.random() < 0.05 else round(dice.gauss(76, 14), 1)  # noqa: PLR2004 - see above
    return name, dice.choice("fm"), age, weight, 1 + int(dice.expovariate(0.2))
