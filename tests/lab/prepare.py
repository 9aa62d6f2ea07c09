"""Makes everything the lab needs that takes long, at the same time, before tests or a demo want it.

Owns only the order. A second run finds all of it made and takes about a second.

    python -m tests.lab.prepare               everything, as the tests need it
    python -m tests.lab.prepare demo          what the demo with the embedded server needs
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.lab.agent_image import agent_image
from tests.lab.blob_store import azurite
from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, average_image, runner_image, tiny_image
from tests.lab.ocean import ocean_js, ocean_py
from tests.lab.package import FIRST, SECOND, PackageError, debian_package
from tests.lab.places import say
from tests.lab.systemd import installed_image
from tests.lab.systems import RootError
from tests.lab.venvs import VenvError, client_venv, schemathesis_venv, server_venv

Job = Callable[[], object]


def prepare(jobs: Sequence[Job]) -> None:
    """Do these jobs at the same time."""
    started = time.monotonic()
    with engine(), ThreadPoolExecutor() as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
    say(f"ready after {time.monotonic() - started:.0f} s")


def _demo_images() -> None:
    with engine() as found:
        average_image(found.client())


def _images() -> None:
    with engine() as found:
        client = found.client()
        tiny_image(client)
        average_image(client)


def _service_images() -> None:
    with engine() as found:
        client = found.client()
        installed_image(client)
        agent_image(client)


def _packages() -> None:
    for version in (FIRST, SECOND):
        debian_package(version)


def _runner_image() -> None:
    with engine() as found:
        runner_image(found.client())


def _javascript() -> None:
    azurite()
    ocean_js()


def _venvs() -> None:
    server_venv()
    client_venv()
    schemathesis_venv()


def _ocean_py() -> None:
    try:
        ocean_py()
    except VenvError as error:
        # Everything else works without it, and on a newer Python some of what it stands on has to be compiled.
        say(f"{error}; the tests with it will say so again")


PURPOSES: Mapping[str, Sequence[Job]] = {
    "": (_images, _venvs, _service_images, _packages, _javascript, _ocean_py, _runner_image),
    "demo": (_demo_images,),
}


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands in the module's docstring."""
    jobs = PURPOSES.get(" ".join(arguments))
    if jobs is None:
        print(__doc__, file=sys.stderr)
        return 64
    prepare(jobs)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (EngineError, ImageError, PackageError, RootError, VenvError) as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        sys.exit(130)
