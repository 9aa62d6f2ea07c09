"""Images for tests, made without an image registry where none is reachable.

Owns the Python base, the layer with the vantage6 algorithm tools, and thin images on top of them. Must not know
servers, agents or what an algorithm computes. Every image carries the label `node-agent-lab=1`.

    python -m tests.lab.images build     make the base, the tools and the demo algorithm
    python -m tests.lab.images list      what is there
    python -m tests.lab.images remove    remove all of it
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound

from tests.lab.engine import EngineError, engine
from tests.lab.places import lab_dir, locked, timed
from tests.lab.systems import RootError, old_archive, old_python

LABEL = "node-agent-lab"
REPOSITORY = "node-agent-lab"
BASE_NAME, BASE_TAG = f"{REPOSITORY}/python", "latest"
BASE = f"{BASE_NAME}:{BASE_TAG}"
ALGORITHMS = Path(__file__).parent / "algorithms"

PUBLIC_BASE = "python:3.11-slim"
ASK_SECONDS = 10

TOOLS = ("vantage6-algorithm-tools==4.15.2", "pandas<3", "pyarrow", "openpyxl")
UNUSED = ("pandas/tests", "pyarrow/tests", "pyarrow/include", "pyarrow/src", "setuptools", "bin")
TOOLS_RECIPE = f"""\
FROM {BASE}
COPY site /opt/algorithm
RUN python3 -m compileall -q -j 0 -x /tests/ /opt/algorithm
ENV PYTHONPATH=/opt/algorithm
"""
ALGORITHM_COMMAND = "from vantage6.algorithm.tools.wrap import wrap_algorithm; wrap_algorithm()"

RUNNER = ("ocean-runner==0.3.16", "oceanprotocol-job-details==0.5.2")
POOLED = "/algorithm/src/algorithm.py"
"""Where the job algorithm made with the runner lies in its image."""

EMPTY_RUN = """\
import base64, os
path = base64.b32decode(os.environ["OUTPUT_FILE"].replace("!", "=")).decode()
with open(path, "wb") as output:
    output.write(b"{}")
"""


class ImageError(Exception):
    """An image cannot be made; the text says which and why."""


def python_base(client: docker.DockerClient) -> str:
    """Return an image with Python 3.11 and nothing else: the newest that vantage6's tools of 4.15.2 support."""
    with locked("images"):
        if not _exists(client, BASE) and not _pull_base(client):
            _bootstrap_base(client)
    return BASE


def tools_image(client: docker.DockerClient) -> str:
    """Return the image with the vantage6 algorithm tools that all algorithm images stand on."""
    base = client.images.get(python_base(client))
    recipe = json.dumps([base.id, TOOLS, UNUSED, TOOLS_RECIPE])
    tag = f"{REPOSITORY}/tools:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with locked("images"):
        if not _exists(client, tag):
            _build_tools(client, tag)
    return tag


def algorithm_image(client: docker.DockerClient, name: str, folder: Path) -> str:
    """Return an image of the algorithm package in *folder*, started the way vantage6 algorithms are."""
    package = folder.name
    recipe = f"""\
FROM {tools_image(client)}
COPY {package} /opt/algorithm/{package}
ENV PKG_NAME={package}
CMD {json.dumps(["python3", "-c", ALGORITHM_COMMAND])}
"""
    sources = sorted(path for path in folder.rglob("*.py"))
    files = {f"{package}/{path.relative_to(folder)}": path.read_bytes() for path in sources}
    return _build(client, name, recipe, files)


def runner_image(client: docker.DockerClient) -> str:
    """Return an image with what compute-to-data algorithms in Python are written with, and one of them."""
    recipe = f"FROM {_runner_tools_image(client)}\nCOPY algorithm.py {POOLED}\n"
    content = (ALGORITHMS / "pooled" / "algorithm.py").read_bytes()
    return _build(client, "pooled", recipe, {"algorithm.py": content})


def script_image(client: docker.DockerClient, name: str, script: str) -> str:
    """Return an image that runs *script* with a bare Python: no vantage6 tools, a start of some 20 ms."""
    recipe = f"""\
FROM {python_base(client)}
COPY script.py /script.py
ENTRYPOINT {json.dumps(["python3", "-S", "-u", "/script.py"])}
"""
    return _build(client, name, recipe, {"script.py": script.encode()})


def shell_image(client: docker.DockerClient, name: str, script: str) -> str:
    """Return an image that runs *script* with a plain shell: where many containers are started, Python counts."""
    recipe = f"""\
FROM {python_base(client)}
COPY script.sh /script.sh
ENTRYPOINT {json.dumps(["sh", "/script.sh"])}
"""
    return _build(client, name, recipe, {"script.sh": script.encode()})


def tiny_image(client: docker.DockerClient) -> str:
    """Return an image for empty runs: it writes `{}` as its output and exits."""
    return script_image(client, "tiny", EMPTY_RUN)


def average_image(client: docker.DockerClient) -> str:
    """Return the image of the demo algorithm."""
    return algorithm_image(client, "average", ALGORITHMS / "average")


def _exists(client: docker.DockerClient, tag: str) -> bool:
    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def _pull_base(client: docker.DockerClient) -> bool:
    """Take the public image where one can be had; the answer "no" is remembered, since asking may cost seconds."""
    unreachable = lab_dir() / "no-public-images"
    if unreachable.exists():
        return False
    if not _is_offered(client, PUBLIC_BASE):
        unreachable.touch()
        return False
    with timed(f"pulling {PUBLIC_BASE}"):
        _build(client, "python", f"FROM {PUBLIC_BASE}\n", {})
    return True


def _is_offered(client: docker.DockerClient, image: str) -> bool:
    """Ask for the manifest first: a pull has no time limit of its own, this question has."""
    usual = client.api.timeout
    client.api.timeout = ASK_SECONDS
    try:
        client.api.inspect_distribution(image)  # type: ignore[no-untyped-call]
    except (DockerException, OSError):
        return False
    finally:
        client.api.timeout = usual
    return True


def _bootstrap_base(client: docker.DockerClient) -> None:
    changes = [f"LABEL {LABEL}=1", "CMD python3"]
    client.api.import_image_from_file(str(old_archive()), BASE_NAME, BASE_TAG, changes=changes)


def _build_tools(client: docker.DockerClient, tag: str) -> None:
    context = lab_dir("cache", f"tools-{tag.rpartition(':')[2]}")
    with timed("fetching the algorithm tools"):
        _fetch_tools(context / "site")
    with timed("building the image with the algorithm tools"):
        _build_site(client, tag, context)


def _build_site(client: docker.DockerClient, tag: str, context: Path) -> None:
    """Make an image of the packages in the folder `site` of *context*, which is removed."""
    (context / "Dockerfile").write_text(TOOLS_RECIPE)
    _finish(client.api.build(path=str(context), tag=tag, labels={LABEL: "1"}, rm=True, decode=True))
    shutil.rmtree(context)


def _runner_tools_image(client: docker.DockerClient) -> str:
    base = client.images.get(python_base(client))
    recipe = json.dumps([base.id, RUNNER, TOOLS_RECIPE])
    tag = f"{REPOSITORY}/ocean-runner:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    # a lock of its own: the other images need not wait for these packages
    with locked("ocean-runner-image"):
        if not _exists(client, tag):
            context = lab_dir("cache", "ocean-runner")
            with timed(f"making the image with {RUNNER[0]}"):
                install_into(context / "site", RUNNER)
                _build_site(client, tag, context)
    return tag


def _fetch_tools(target: Path) -> None:
    install_into(target, TOOLS)
    # A fifth of the bytes and of the compile time, and no algorithm imports them.
    for part in UNUSED:
        shutil.rmtree(target / part, ignore_errors=True)


def install_into(target: Path, wanted: Sequence[str]) -> None:
    """Install packages for the Python of the base image into a folder of this machine.

    The pip at hand does it: inside a build it may lack the certificates and index settings of this machine.
    """
    command = [sys.executable, "-m", "pip", "--python", str(old_python()), "install", "-qq", "--no-compile"]
    command += ["--disable-pip-version-check", "--upgrade", "--target", str(target), *wanted]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ImageError(f"pip cannot install {wanted[0]}: {result.stderr.strip()[-600:]}")


def _build(client: docker.DockerClient, name: str, recipe: str, files: Mapping[str, bytes]) -> str:
    tag = f"{REPOSITORY}/{name}:latest"
    context = _context({"Dockerfile": recipe.encode(), **files})
    _finish(
        client.api.build(
            fileobj=context, custom_context=True, tag=tag, labels={LABEL: "1"}, rm=True, decode=True
        )
    )
    return tag


def _context(files: Mapping[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    stream.seek(0)
    return stream


def _finish(progress: Iterable[Mapping[str, Any]]) -> None:
    """Read a stream of the engine to its end and raise what it reports as an error."""
    for line in progress:
        if "error" in line:
            raise ImageError(str(line["error"]))


def _ours(client: docker.DockerClient) -> list[str]:
    images = client.images.list(filters={"label": f"{LABEL}=1"})
    return sorted(tag for image in images for tag in image.tags)


def _remove_all(client: docker.DockerClient) -> None:
    for tag in _ours(client):
        client.images.remove(tag, force=True)
        print("removed", tag)
    client.images.prune(filters={"label": f"{LABEL}=1"})


def _build_all(client: docker.DockerClient) -> None:
    for make in (tools_image, tiny_image, average_image):
        print(make(client))


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands in the module's docstring."""
    with engine() as found:
        client = found.client()
        match list(arguments):
            case ["build"]:
                _build_all(client)
            case ["list"]:
                print("\n".join(_ours(client)))
            case ["remove"]:
                _remove_all(client)
            case _:
                print(__doc__, file=sys.stderr)
                return 64
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (EngineError, ImageError, RootError) as error:
        sys.exit(f"lab: {error}")
