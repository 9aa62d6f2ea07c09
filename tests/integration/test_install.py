"""What `make install` hands on, without installing anything."""

import subprocess

from tests.lab.places import ROOT

SAY = "say-python: ; @printf '%s' \"$$PYTHON\""


def python_of_recipes(**environment: str) -> str:
    asked = ["make", "--silent", "--no-print-directory", f"--eval={SAY}", "say-python"]
    done = subprocess.run(
        asked,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_interpreter_that_somebody_names_reaches_the_installer() -> None:
    assert python_of_recipes(PYTHON="/usr/bin/python3.12") == "/usr/bin/python3.12"


def test_without_a_name_the_installer_looks_for_an_interpreter_by_itself() -> None:
    assert python_of_recipes() == ""
