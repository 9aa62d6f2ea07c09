"""Column names are shared only from a file whose first line looks like names: it may be a patient's values."""

from pathlib import Path

import pytest

from node_agent.databases.columns import answer


def told(folder: Path, text: str) -> object:
    path = folder / "a.csv"
    path.write_text(text)
    return answer({"label": "default", "type": "csv", "path": str(path)})


@pytest.mark.parametrize(
    "line",
    [
        "Meier,1954-03-02,Berlin",
        "Meier,2.3.1954,Berlin",
        "Meier,71,male",
        "Meier,-7.5,male",
        'Meier,"7,5",male',
        "male,male,Meier",
        "Meier,,male",
        "Meier,08:15,male",
    ],
)
def test_the_first_patient_of_a_file_without_header_is_not_shared(tmp_path: Path, line: str) -> None:
    assert told(tmp_path, f"{line}\nSchulz,x,y\n") == {"label": "default", "error": "NoHeader"}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("id,age_at_visit,q1,visit 2", ["id", "age_at_visit", "q1", "visit 2"]),
        (",age", ["Unnamed: 0", "age"]),
        ("age", ["age"]),
    ],
)
def test_names_are_shared(tmp_path: Path, line: str, names: list[str]) -> None:
    assert told(tmp_path, f"{line}\n") == {"label": "default", "columns": names}
