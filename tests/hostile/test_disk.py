"""Attacks on the disk: files without a name, files nobody can see, and an image that unpacks without end."""

import contextlib
import gzip
import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests
from docker.errors import ImageNotFound

from node_agent.domain.container import Mount, PinnedImage, PullBounds
from node_agent.domain.diskuse import Held
from node_agent.errors import ImageMissing
from node_agent.runtime.openfiles import held_on
from node_agent.sandbox.researcher import Order, Researcher, RunSeen
from tests.integration.machine import USER, EngineError, Machine, machine
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.counting import nothing_is_left
from tests.lab.images import script_image
from tests.lab.registry import registry
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client, or_missing

MIB = 2**20
PATIENCE = 60.0
SMALL_DISK = 400 * MIB
LEAST_FREE = 200 * MIB

HOSTILE = """\
import base64, json, os, socket, time
def place(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()
asked = json.load(open(place("INPUT_FILE")))["kwargs"]
block, kept = b"x" * 2**20, []
def file_of(megabytes, name):
    descriptor = os.open(name, os.O_CREAT | os.O_WRONLY)
    if asked["how"] != "named":
        os.unlink(name)
    for _ in range(megabytes):
        os.write(descriptor, block)
    return descriptor
for number in range(asked["files"]):
    descriptor = file_of(asked["megabytes"], "/mnt/tmp/%d" % number)
    if asked["how"] == "in flight":
        # in the queue of a socket, and in no process's table of open files
        one, other = socket.socketpair()
        socket.send_fds(one, [b"x"], [descriptor])
        kept += [one, other]
        os.close(descriptor)
    else:
        kept.append(descriptor)
time.sleep(asked["seconds"])
open(place("OUTPUT_FILE"), "w").write("{}")
"""


@dataclass
class Site:
    """A node whose researcher may use hostile images."""

    lab: SandboxLab
    agent: AgentProcess
    image: str

    @property
    def researcher(self) -> Researcher:
        return Researcher.at(self.lab.url, username="alpha", password=self.lab.server.passwords["alpha"])

    def send(self, how: str, *, files: int = 0, megabytes: int = 0, seconds: float = 0) -> int:
        return self.order(
            self.image, {"how": how, "files": files, "megabytes": megabytes, "seconds": seconds}
        )

    def order(self, image: str, kwargs: Mapping[str, Any]) -> int:
        return self.researcher.send(
            Order(
                image=image,
                method="attack",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
                kwargs=kwargs,
            )
        )

    def is_running(self, task: int) -> None:
        (run,) = self.researcher.runs(task)
        self.agent.wait_for("run_advanced", within=PATIENCE, run_id=run.id, to="running")

    def ended(self, task: int) -> RunSeen:
        researcher = self.researcher
        eventually(lambda: researcher.runs(task)[0].is_over, within=PATIENCE, what=f"the end of task {task}")
        return researcher.runs(task)[0]


@contextlib.contextmanager
def site_on(state_dir: Path | None, settings: Mapping[str, Any]) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        image = script_image(client, "hostile-disk", HOSTILE)
        lab = stack.enter_context(SandboxLab(("alpha",)))
        place = {} if state_dir is None else {"state_dir": str(state_dir)}
        agent = AgentProcess(
            server_url=lab.url, api_key=lab.api_keys["alpha"], settings={**settings, **place}
        )
        agent.state_dir = state_dir or agent.state_dir
        yield Site(lab, stack.enter_context(agent), image)


@pytest.fixture(scope="module")
def place() -> Iterator[Machine]:
    """An engine with what belongs to one agent."""
    with or_missing(EngineError), machine(f"disk-{os.getpid()}") as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A file system of its own, on this machine's disk."""
    store, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with store.open("wb") as file:
        file.truncate(SMALL_DISK)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(store)], check=True)
    command = ["mount", "-o", "loop", str(store), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"the right to mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.engine
def test_files_without_a_name_count_toward_the_limit_of_a_run() -> None:
    """Tries to keep 3 GB in open files that have no name, under limits of 200 MiB; the run is ended."""
    with site_on(None, {"limits": {"tmp_size": "100MiB", "output_size": "100MiB"}}) as site:
        run = site.ended(site.send("unlinked", files=30, megabytes=100, seconds=20))
        assert run.status == "failed"
        assert "limits.output_size and limits.tmp_size" in run.log


@pytest.mark.engine
@pytest.mark.parametrize("how", ["named", "in flight"])
def test_a_run_that_fills_the_disk_is_ended_and_its_neighbour_goes_on(small_disk: Path, how: str) -> None:
    """Tries to fill the disk within generous limits, also with files that no table of open files shows."""
    limits = {"tmp_size": "1GiB", "output_size": "1GiB", "min_free_disk": "200MiB"}
    with site_on(small_disk / "state", {"limits": limits}) as site:
        neighbour = site.send("named", seconds=8)
        site.is_running(neighbour)
        run = site.ended(site.send(how, files=7, megabytes=40, seconds=40))
        assert run.status == "failed"
        assert "limits.min_free_disk" in run.log
        assert site.ended(neighbour).status == "completed"
        eventually(lambda: nothing_is_left(site.agent), within=PATIENCE, what="nothing left")


KEEP_UNNAMED = """\
import os, time
kept = os.open("/mnt/tmp/x", os.O_CREAT | os.O_RDWR)
os.unlink("/mnt/tmp/x")
os.write(kept, b"x" * 2**20)
time.sleep(60)
"""


@pytest.mark.engine
def test_an_agent_without_rights_sees_the_open_files_of_its_own_user_and_no_others(place: Machine) -> None:
    """Tries to hide files from the unprivileged service, whose containers run as its own user."""
    uid, gid = USER
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        os.chown(folder, uid, gid)
        container = place.start(1, KEEP_UNNAMED, mounts=(Mount(name, "/mnt/tmp", read_only=False),))
        report = place.engine.inspect(container)
        assert report is not None
        assert report.pid is not None
        eventually(
            lambda: held_on(folder, container, pid=report.pid).unnamed >= MIB,
            within=PATIENCE,
            what="a file without a name",
        )
        folder.chmod(0o755)
        assert seen_by(uid, folder, container, report.pid).unnamed >= MIB
        assert seen_by(uid, folder, container, None).is_complete
        assert not seen_by(uid + 1, folder, container, report.pid).is_complete
        place.engine.remove(container)


def seen_by(uid: int, folder: Path, container: str, pid: int | None) -> Held:
    os.setegid(USER[1])
    os.seteuid(uid)
    try:
        return held_on(folder, container, pid=pid)
    finally:
        os.seteuid(0)
        os.setegid(0)


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_an_image_that_unpacks_to_more_than_is_allowed_is_not_taken_and_leaves_nothing() -> None:
    """Tries to have the engine unpack 768 MiB from a layer of less than one, where 200 MiB are allowed."""
    settings = {"images": {"pull": "always", "max_size": "200MiB"}}
    with registry() as shop, engine_client() as client:
        bomb = push_zeros(shop.host, "bomb", blocks=12)
        policy = {"policy": {"algorithms": [f"{shop.host}/*", "node-agent-lab/*"]}}
        with site_on(None, settings | policy) as site:
            run = site.ended(site.order(bomb, {}))
            assert run.status == "non-existing Docker image"
            assert "images.max_size" in run.log
            with pytest.raises(ImageNotFound):
                client.images.get(bomb)


@pytest.mark.engine
def test_a_pull_is_called_off_when_the_disk_runs_short(place: Machine) -> None:
    """Tries to fill the engine's disk with an image; how much is left is made up, since the disk is everybody's."""
    asked: list[int] = []

    def free() -> int:
        asked.append(1)
        return 1000 if len(asked) < 3 else 99

    with registry() as shop:
        bomb = push_zeros(shop.host, "short", blocks=16)
        with pytest.raises(ImageMissing, match=r"limits\.min_free_disk"):
            place.engine.pull_image(
                bomb,
                wanted=lambda: True,
                progress=lambda _: None,
                bounds=PullBounds(least_free=100, free=free),
            )
        # what comes of a pull that is called off is seen within moments
        time.sleep(1)
        assert place.engine.find_image(bomb) is None


@pytest.mark.engine
@pytest.mark.parametrize("was_here", [False, True])
def test_a_small_pull_that_turns_out_too_large_is_removed_and_the_name_means_what_it_did(
    place: Machine, was_here: bool
) -> None:
    """Tries to pass with an image that unpacks faster than anybody looks."""
    with registry() as shop:
        good = push_zeros(shop.host, f"quick-{was_here:d}", size=1000)
        before = pulled(place, good, PullBounds()) if was_here else None
        push_zeros(shop.host, f"quick-{was_here:d}", size=5 * MIB)
        with pytest.raises(ImageMissing, match=r"images\.max_size"):
            pulled(place, good, PullBounds(max_size=MIB), here=before)
        found = place.engine.find_image(good)
        assert (found and found.image_id) == (before and before.image_id)
        if before is not None:
            place.client.images.remove(before.image_id, force=True)


def pulled(
    place: Machine, reference: str, bounds: PullBounds, here: PinnedImage | None = None
) -> PinnedImage:
    return place.engine.pull_image(
        reference, wanted=lambda: True, progress=lambda _: None, here=here, bounds=bounds
    )


BLOCK = 64 * MIB


def push_zeros(host: str, name: str, *, blocks: int = 0, size: int = 0) -> str:
    """Put an image into a registry with one file of zeros: so many blocks of 64 MiB, and *size* bytes."""
    layer, unpacked = zeros(blocks * BLOCK + size)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/zeros"]},
            "rootfs": {"type": "layers", "diff_ids": [unpacked]},
        }
    ).encode()
    base = f"http://{host}/v2/{name}"
    kind = "application/vnd.docker"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.distribution.manifest.v2+json",
        "config": uploaded(base, config) | {"mediaType": f"{kind}.container.image.v1+json"},
        "layers": [uploaded(base, layer) | {"mediaType": f"{kind}.image.rootfs.diff.tar.gzip"}],
    }
    answer = requests.put(
        f"{base}/manifests/1",
        data=json.dumps(manifest),
        headers={"Content-Type": str(manifest["mediaType"])},
        timeout=30,
    )
    answer.raise_for_status()
    return f"{host}/{name}:1"


def zeros(size: int) -> tuple[bytes, str]:
    """Return a packed layer with one file of so many zeros, and the digest of what it unpacks to."""
    entry = tarfile.TarInfo("zeros")
    entry.size = size
    padded = -(-size // 512) * 512 + 1024
    blocks, rest = divmod(padded, BLOCK)
    block, head = bytes(BLOCK), entry.tobuf()
    digest = hashlib.sha256(head)
    for _ in range(blocks):
        digest.update(block)
    digest.update(bytes(rest))
    # members of gzip in a row are unpacked in a row
    packed = gzip.compress(head) + gzip.compress(block, 9) * blocks + gzip.compress(bytes(rest), 9)
    return packed, f"sha256:{digest.hexdigest()}"


def uploaded(base: str, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    begun = requests.post(f"{base}/blobs/uploads/", timeout=30)
    begun.raise_for_status()
    sent = requests.put(begun.headers["Location"], params={"digest": digest}, data=content, timeout=30)
    sent.raise_for_status()
    return {"digest": digest, "size": len(content)}
