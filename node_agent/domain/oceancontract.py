"""What an algorithm container of the Ocean contract finds: files, mounts, variables.

Owns the names existing images rely on, in the layout of the specification (one folder per data set, files numbered from
0). Knows nothing of an engine, nor of what a request looked like. Data sets are read-only, and nothing but what the job
asks for is there.
"""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node_agent.domain.assets import short_did
from node_agent.domain.container import Mount

ROOT = "/data"
INPUTS, TRANSFORMATIONS, DOCUMENTS, OUTPUTS, LOGS = "inputs", "transformations", "ddos", "outputs", "logs"
CODE = f"{TRANSFORMATIONS}/algorithm"
PARAMETERS = f"{INPUTS}/algoCustomData.json"
WRITABLE = (OUTPUTS, LOGS)
CLOSED = (INPUTS, TRANSFORMATIONS, DOCUMENTS)
"""What of `/data` an algorithm may only read."""
RAW = "raw"
"""What stands for the algorithm's DID when it came with the job: readers stumble over an empty one."""
MAX_FILES = 256


@dataclass(frozen=True, slots=True)
class MountedDataSet:
    """A data set as a container sees it."""

    did: str
    files: tuple[Path, ...]


def input_name(did: str, number: int) -> str:
    """Name a file of a data set below `/data`."""
    return f"{INPUTS}/{short_did(did)}/{number}"


def files(
    data_sets: Sequence[MountedDataSet],
    *,
    custom: Mapping[str, object],
    code: bytes | None,
    documents: Mapping[str, bytes],
) -> dict[str, bytes]:
    """Give the files below `/data`; those of data sets are empty, for the real ones to be mounted on them."""
    places = {
        input_name(data_set.did, number): b""
        for data_set in data_sets
        for number in range(len(data_set.files))
    }
    described = {f"{DOCUMENTS}/{short_did(did)}": content for did, content in documents.items()}
    own = {PARAMETERS: json.dumps(custom).encode()} | ({} if code is None else {CODE: code})
    return places | described | own


def mounts(
    private: Path, data_sets: Sequence[MountedDataSet], *, names: Collection[str]
) -> tuple[Mount, ...]:
    """List what a container sees of this machine; *private* becomes `/data` and has the files *names* in it."""
    closed = [folder for folder in CLOSED if any(name.startswith(f"{folder}/") for name in names)]
    return (
        Mount(str(private), ROOT, read_only=False),
        *(Mount(str(private / name), f"{ROOT}/{name}", read_only=True) for name in closed),
        *(
            Mount(str(file), f"{ROOT}/{input_name(data_set.did, number)}", read_only=True)
            for data_set in data_sets
            for number, file in enumerate(data_set.files)
        ),
    )


def variables(*, data_sets: Sequence[str], algorithm: str) -> dict[str, str]:
    """Give a container's variables; *data_sets* are DIDs in the consumer's order."""
    return {
        "DIDS": json.dumps([short_did(did) for did in data_sets]),
        "TRANSFORMATION_DID": short_did(algorithm) or RAW,
        "VOLUME": ROOT,
        "INPUTS": f"{ROOT}/{INPUTS}",
        "OUTPUTS": f"{ROOT}/{OUTPUTS}",
        "LOGS": f"{ROOT}/{LOGS}",
    }


def command(entrypoint: str) -> tuple[str, ...] | None:
    """Give the words of an entrypoint, `$ALGO` in them replaced by where the code stands; None keeps the image's own.

    No shell reads them: what a shell would make of them is not what the owner approved. Raises ValueError when the
    entrypoint cannot be taken apart.
    """
    words = shlex.split(entrypoint)
    return tuple(word.replace("$ALGO", f"{ROOT}/{CODE}") for word in words) or None
