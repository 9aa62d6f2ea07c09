"""What an algorithm container of the Ocean contract finds: files, mounts, variables.

Owns the names existing images rely on, in the layout of the specification (one folder per data set, files numbered from
0). Knows nothing of an engine, nor of what a request looked like. Data sets are read-only, and nothing but what the job
asks for is there.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node_agent.domain.assets import short_did
from node_agent.domain.container import Mount

ROOT = "/data"
INPUTS = f"{ROOT}/inputs"
OUTPUTS = f"{ROOT}/outputs"
LOGS = f"{ROOT}/logs"
DOCUMENTS = f"{ROOT}/ddos"
CODE = f"{ROOT}/transformations/algorithm"
PARAMETERS = f"{INPUTS}/algoCustomData.json"
RAW = "raw"
"""What stands for the algorithm's DID when it came with the job: readers stumble over an empty one."""
MAX_FILES = 256


@dataclass(frozen=True, slots=True)
class MountedDataSet:
    """A data set as a container sees it."""

    did: str
    files: tuple[Path, ...]


def mounts(private: Path, data_sets: Sequence[MountedDataSet]) -> tuple[Mount, ...]:
    """List what a container sees of this machine; *private* is the folder that becomes `/data`."""
    return (
        Mount(str(private), ROOT, read_only=False),
        *(
            Mount(str(file), f"{INPUTS}/{short_did(data_set.did)}/{number}", read_only=True)
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
        "INPUTS": INPUTS,
        "OUTPUTS": OUTPUTS,
        "LOGS": LOGS,
    }


def parameters(custom: Mapping[str, object]) -> bytes:
    """Give the content of the file with the algorithm's parameters."""
    return json.dumps(custom).encode()


def command(entrypoint: str) -> tuple[str, ...]:
    """Give the words of an entrypoint, `$ALGO` in them replaced by where the code stands.

    No shell reads them: what a shell would make of them is not what the owner approved. Raises ValueError when the
    entrypoint cannot be taken apart.
    """
    words = shlex.split(entrypoint)
    if not words:
        raise ValueError("the entrypoint is empty")
    return tuple(word.replace("$ALGO", CODE) for word in words)
