"""Patients of three made-up hospitals, the same on every machine and in every run.

Owns the files and what is in them. Must not know who reads them.
"""

import csv
import random
from pathlib import Path

HOSPITALS = {"alpha": 120, "beta": 80, "gamma": 205}
COLUMNS = ("patient", "sex", "age", "weight", "days_in_hospital")
COHORT_COLUMNS = ("arm", "stage", "age", "months", "died", "relapsed")


def write_hospitals(folder: Path) -> dict[str, Path]:
    """Write one CSV file per hospital and return the files by name."""
    return {name: _write(folder / f"{name}.csv", name, patients) for name, patients in HOSPITALS.items()}


def write_cohorts(folder: Path) -> dict[str, Path]:
    """Write one CSV file per hospital with patients of a trial, and return the files by name."""
    return {name: _write_cohort(folder / f"cohort-{name}.csv", name) for name in HOSPITALS}


def _write_cohort(path: Path, hospital: str) -> Path:
    dice = random.Random(f"cohort of {hospital}")
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COHORT_COLUMNS)
        table.writerows(_trial_patient(dice) for _ in range(HOSPITALS[hospital]))
    return path


def _trial_patient(dice: random.Random) -> tuple[str, str, int, float, int, int]:
    arm, stage, age = dice.choice("ab"), dice.choice(("I", "II", "III")), dice.randint(30, 80)
    hazard = 0.02 * len(stage) * (0.7 if arm == "b" else 1)
    months, left = round(dice.expovariate(hazard), 1), round(dice.uniform(6, 60), 1)
    relapsed = int(dice.random() < 0.15 + 0.004 * (age - 30) + 0.1 * len(stage))
    return arm, stage, age, min(months, left), int(months <= left), relapsed


def _write(path: Path, hospital: str, patients: int) -> Path:
    dice = random.Random(hospital)
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
