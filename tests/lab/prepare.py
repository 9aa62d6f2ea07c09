"""Makes everything the lab needs that takes long, at the same time, before tests or a demo want it.

Owns only the order. A second run finds all of it made and takes about a second.

    python -m tests.lab.prepare
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, average_image, tiny_image
from tests.lab.places import say
from tests.lab.venvs import VenvError, client_venv, server_venv


def prepare() -> None:
    """Make the images, and the environments of the real server and client."""
    started = time.monotonic()
    with engine(), ThreadPoolExecutor() as pool:
        jobs: list[Callable[[], object]] = [_images, _venvs]
        for job in [pool.submit(job) for job in jobs]:
            job.result()
    say(f"ready after {time.monotonic() - started:.0f} s")


def _images() -> None:
    with engine() as found:
        client = found.client()
        tiny_image(client)
        average_image(client)


def _venvs() -> None:
    server_venv()
    client_venv()


if __name__ == "__main__":
    try:
        prepare()
    except (EngineError, ImageError, VenvError) as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        sys.exit(130)
