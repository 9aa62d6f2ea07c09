"""Patients of three made-up hospitals, the same on every machine and in every run.

Owns the files and what is in them. Must not know who reads them.
"""

import csv
import random
from pathlib import Path

HOSPITALS = {"alpha": 120, "beta": 80, "gamma": 205}
COLUMNS = ("patient", "sex", "age", "weight", "days_in_hospital")


def write_hospitals(folder: Path) -> dict[str, Path]:
    """Write one CSV file per hospital and return the files by name."""
    return {name: _write(folder / f"{name}.csv", name, patients) for name, patients in HOSPITALS.items()}


def _write(path: Path, hospital: str, patients: int) -> Path:
    dice = random.Random(hospital)  # noqa: S311 - made-up patients, not secrets
    # Hospitals differ, so that the federated average is not the plain mean of three averages.
    typical_age = dice.uniform(45, 75)
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(
            _patient(dice, f"{hospital}-{number}", typical_age) for number in range(1, patients + 1)
        )
    return path


def _patient(dice: random.Random, name: str, typical_age: float) -> tuple[str, str, int, float | str, int]:
    age = min(99, max(18, round(dice.gauss(typical_age, 12))))
    # One weight in twenty was never taken: an empty cell must not count.
    weight = "" if dice.random() < 0.05 else round(dice.gauss(76, 14), 1)
    return name, dice.choice("fm"), age, weight, 1 + int(dice.expovariate(0.2))
