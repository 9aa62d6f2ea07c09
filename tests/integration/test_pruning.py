"""What may go from a real engine goes, and what belongs to others, or is used, stays."""

import contextlib
import gc
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from docker.errors import ImageNotFound, NotFound

from node_agent.clocks import SystemClock
from node_agent.config import ServerSettings, Settings
from node_agent.domain.container import PinnedImage
from node_agent.domain.keeping import ImageKeeping, PulledImage
from node_agent.domain.ports import ImageRemoval
from node_agent.domain.secret import Secret
from node_agent.errors import EngineUnreachable
from node_agent.pruning import prune, would_go
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.network import IsolatedNetwork, network_name
from node_agent.runtime.remains import YOUNG_SECONDS, EngineRemains
from node_agent.runtime.spec import LABEL_NAME, LABEL_PROBE
from node_agent.store.rundir import DiskRunFolders
from node_agent.sweep import Images, Sweep, Swept
from tests.integration.machine import USER, Machine, small_image
from tests.lab.registry import Registry, registry

pytestmark = pytest.mark.engine


def later() -> float:
    return time.time() + 2 * YOUNG_SECONDS


def remains_of(place: Machine, *, name: str | None = None, looking_up: Any = None) -> EngineRemains:
    name = name or place.name
    return EngineRemains(
        name,
        place.connection,
        network=network_name(name),
        looking_up=looking_up or threading.Lock(),
        now=later,
    )


@pytest.fixture(scope="module")
def shop() -> Iterator[Registry]:
    with registry() as found:
        yield found


@dataclass
class Shelf:
    """A registry's images, and what pulling them leaves on this machine."""

    place: Machine
    shop: Registry
    prefix: str

    def offer(self, name: str, tag: str = "1", content: str | None = None) -> str:
        """Put an image into the registry that is not on this machine."""
        source = small_image(self.place.client, self.place.name, content or f"{self.prefix}{name}")
        pushed = self.shop.push(self.place.client, source, f"{self.prefix}/{name}:{tag}")
        for reference in (pushed.reference, pushed.pinned, source):
            try:
                self.place.client.images.remove(reference)
            except ImageNotFound:
                continue
        return pushed.reference

    def pull(self, reference: str) -> PulledImage:
        return noted(reference, self.pinned(reference))

    def move(self, reference: str, *, to: str) -> str:
        """Have a name mean the local image *to* in the registry, and there alone; give its digest."""
        before = self.place.client.images.get(reference)
        pushed = self.shop.push(self.place.client, to, reference.partition("/")[2])
        before.tag(*reference.rsplit(":", 1))
        return pushed.digest

    def pinned(self, reference: str, here: PinnedImage | None = None) -> PinnedImage:
        return self.place.engine.pull_image(
            reference, wanted=lambda: True, progress=lambda _: None, here=here
        )

    def has(self, image_id: str) -> bool:
        try:
            self.place.client.images.get(image_id)
        except ImageNotFound:
            return False
        return True


def noted(reference: str, image: PinnedImage) -> PulledImage:
    return PulledImage(
        image_id=image.image_id, reference=reference, digest=image.digest, pulled_at=0.0, used_at=0.0
    )


@pytest.fixture
def shelf(place: Machine, shop: Registry) -> Iterator[Shelf]:
    made = Shelf(place, shop, f"prune{os.getpid()}{secrets.token_hex(3)}")
    yield made
    for image in place.client.images.list():
        for tag in image.tags:
            if made.prefix in tag:
                place.client.images.remove(tag, force=True)


def nobody() -> bool:
    return False


# --- images ---------------------------------------------------------------------------------------------------


def test_a_pull_is_new_only_when_no_image_had_its_content_before(shelf: Shelf) -> None:
    reference = shelf.offer("a")
    assert shelf.pinned(reference).is_new
    assert not shelf.pinned(reference).is_new
    other = shelf.offer("b", content=f"{shelf.prefix}other")
    small_image(shelf.place.client, shelf.place.name, f"{shelf.prefix}mine")
    assert shelf.pinned(other).is_new


def test_an_image_the_owner_has_under_another_name_is_not_new(shelf: Shelf) -> None:
    reference = shelf.offer("a")
    first = shelf.pinned(reference)
    shelf.place.client.images.get(first.image_id).tag(f"{shelf.prefix}-owner", "1")
    shelf.place.client.images.remove(reference)
    assert not shelf.pinned(reference).is_new


def test_a_name_that_means_what_it_did_is_not_looked_up_again(shelf: Shelf) -> None:
    reference = shelf.offer("a")
    first = shelf.pinned(reference)
    here = shelf.place.engine.find_image(reference)
    assert here == replace(first, is_new=False)
    assert shelf.pinned(reference, here=here) is here


def test_a_name_that_moved_brings_something_new_unless_its_content_was_here(shelf: Shelf) -> None:
    reference = shelf.offer("a")
    one = shelf.pinned(reference)
    shelf.place.client.images.get(one.image_id).tag(f"{shelf.prefix}-owner", "1")
    other = small_image(shelf.place.client, shelf.place.name, f"{shelf.prefix}other")
    moved = shelf.move(reference, to=other)
    shelf.place.client.images.remove(other)
    two = shelf.pinned(reference, here=one)
    assert (two.digest, two.is_new) == (moved, True)
    shelf.move(reference, to=f"{shelf.prefix}-owner:1")
    assert shelf.pinned(reference, here=two) == replace(one, is_new=False)


def test_a_pulled_image_goes_with_all_its_names(shelf: Shelf) -> None:
    one = shelf.pull(shelf.offer("a", "1"))
    name = one.reference.rpartition(":")[0]
    by_digest = replace(one, reference=f"{name}@{one.digest}")
    assert remains_of(shelf.place).remove_image([one, by_digest], needed=nobody) is ImageRemoval.GONE
    assert not shelf.has(one.image_id)
    assert remains_of(shelf.place).remove_image([one, by_digest], needed=nobody) is ImageRemoval.GONE


def test_a_name_the_owner_gave_a_pulled_image_stays_and_the_image_with_it(shelf: Shelf) -> None:
    pulled = shelf.pull(shelf.offer("a"))
    shelf.place.client.images.get(pulled.image_id).tag(f"{shelf.prefix}-owner", "1")
    assert remains_of(shelf.place).remove_image([pulled], needed=nobody) is ImageRemoval.TAKEN_OVER
    assert shelf.place.client.images.get(f"{shelf.prefix}-owner:1").id == pulled.image_id
    assert not shelf.has(pulled.reference)


def test_a_name_that_means_another_image_by_now_is_left_alone(shelf: Shelf) -> None:
    pulled = shelf.pull(shelf.offer("a"))
    own = small_image(shelf.place.client, shelf.place.name, f"{shelf.prefix}own")
    name, _, tag = pulled.reference.rpartition(":")
    shelf.place.client.images.get(own).tag(name, tag)
    assert remains_of(shelf.place).remove_image([pulled], needed=nobody) is ImageRemoval.GONE
    assert shelf.place.client.images.get(pulled.reference).id == shelf.place.client.images.get(own).id
    assert not shelf.has(pulled.image_id)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "foreign"])
def test_an_image_that_a_container_is_made_from_stays(shelf: Shelf, ours: bool) -> None:
    pulled = shelf.pull(shelf.offer("a"))
    labels = {LABEL_NAME: shelf.place.name} if ours else {}
    container = shelf.place.client.containers.create(pulled.reference, ["/x"], labels=labels)
    try:
        assert remains_of(shelf.place).remove_image([pulled], needed=nobody) is ImageRemoval.IN_USE
        assert shelf.has(pulled.reference)
    finally:
        container.remove(force=True)
    assert remains_of(shelf.place).remove_image([pulled], needed=nobody) is ImageRemoval.GONE


def test_an_image_that_others_were_built_on_stays_usable_for_them(shelf: Shelf) -> None:
    pulled = shelf.pull(shelf.offer("a"))
    container = shelf.place.client.containers.create(pulled.reference, ["/x"])
    child = container.commit(f"{shelf.prefix}-child", "1")
    container.remove(force=True)
    remains_of(shelf.place).remove_image([pulled], needed=nobody)
    made = shelf.place.client.containers.create(child.id, ["/x"])
    archive, _ = made.get_archive("/content")
    assert b"".join(archive)
    made.remove(force=True)


def test_a_run_that_needs_the_image_at_the_last_moment_keeps_it(shelf: Shelf) -> None:
    pulled = shelf.pull(shelf.offer("a"))
    assert remains_of(shelf.place).remove_image([pulled], needed=lambda: True) is ImageRemoval.IN_USE
    assert shelf.has(pulled.reference)


def test_nobody_can_look_an_image_up_while_it_is_decided_whether_it_goes(place: Machine) -> None:
    looking_up = threading.Lock()
    seen: list[bool] = []
    remains = remains_of(place, looking_up=looking_up)

    def needed() -> bool:
        seen.append(looking_up.locked())
        return True

    image = PulledImage(image_id="sha256:0", reference="r/a:1", digest=None, pulled_at=0.0, used_at=0.0)
    remains.remove_image([image], needed=needed)
    assert seen == [True]


def test_the_disk_of_the_engine_and_the_sizes_of_its_images_are_seen(place: Machine) -> None:
    disk = remains_of(place).disk()
    assert disk is not None
    assert 0 < disk.used < disk.total
    assert remains_of(place).image_sizes()[place.image_id] > 0


# --- containers, networks, volumes ----------------------------------------------------------------------------


@dataclass
class Things:
    """A probe, a network and a volume of one agent."""

    place: Machine
    agent: str

    def __post_init__(self) -> None:
        client, labels = self.place.client, {LABEL_NAME: self.agent}
        self.probe = client.containers.create(
            self.place.image_id, labels={**labels, LABEL_PROBE: "true"}, network_mode="none"
        )
        self.network = client.networks.create(f"{self.agent}-old", labels=labels)
        self.volume = client.volumes.create(f"{self.agent}-volume", labels=labels)

    def there(self) -> list[str]:
        found = []
        for thing in (self.probe, self.network, self.volume):
            try:
                thing.reload()
            except NotFound:
                continue
            found.append(type(thing).__name__)
        return found

    def clear(self) -> None:
        for remove in (lambda: self.probe.remove(force=True), self.network.remove, self.volume.remove):
            try:
                remove()
            except NotFound:
                continue


@pytest.fixture
def ours(place: Machine) -> Iterator[Things]:
    made = Things(place, place.name)
    yield made
    made.clear()


@pytest.fixture
def theirs(place: Machine) -> Iterator[Things]:
    """The same of an agent whose name begins with ours."""
    made = Things(place, f"{place.name}-b")
    yield made
    made.clear()


def test_leftovers_of_this_agent_go_and_those_of_another_stay(ours: Things, theirs: Things) -> None:
    remains = remains_of(ours.place)
    isolated = ours.place.facts
    found = remains.leftovers()
    assert sorted(leftover.kind for leftover in found) == ["container", "network", "volume"]
    assert all(remains.remove_leftover(leftover) for leftover in found)
    assert ours.there() == []
    assert theirs.there() == ["Container", "Network", "Volume"]
    assert ours.place.client.networks.get(isolated.id)
    assert all(remains.remove_leftover(leftover) for leftover in found)


def test_what_is_young_or_in_use_stays(ours: Things) -> None:
    young = EngineRemains(
        ours.agent, ours.place.connection, network="", looking_up=threading.Lock(), now=time.time
    )
    assert young.leftovers() == ()
    user = ours.place.client.containers.create(
        ours.place.image_id, ["/x"], network=ours.network.name, volumes=[f"{ours.volume.name}:/v"]
    )
    try:
        remains = remains_of(ours.place)
        stays = [item for item in remains.leftovers() if item.kind == "volume"]
        assert [remains.remove_leftover(item) for item in stays] == [False]
        assert "Volume" in ours.there()
    finally:
        user.remove(force=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_engine_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    away = EngineRemains(
        "alpha", EngineConnection(f"unix://{tmp_path}/no.sock"), network="", looking_up=threading.Lock()
    )
    for call in (away.leftovers, away.image_sizes, away.used_images, away.disk):
        with pytest.raises(EngineUnreachable):
            call()
    # The library leaves its socket to the collector when a connection is refused.
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_command_says_that_an_engine_is_away(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    settings = Settings(
        name=f"away-{os.getpid()}",
        server=ServerSettings(url="https://h/api", api_key=Secret("k")),
        state_dir=tmp_path,
        docker_host=f"unix://{tmp_path}/no.sock",
    )
    with pytest.raises(EngineUnreachable):
        would_go(settings, SystemClock())
    assert "no.sock" in prune(settings, SystemClock()).left
    gc.collect()


# --- an engine that fails half-way ----------------------------------------------------------------------------


class FailingEngine:
    """Passes everything on to the engine until so many removals were asked for; then every connection breaks."""

    def __init__(self, folder: Path, *, removals: int) -> None:
        self.path = folder / "engine.sock"
        self._left = removals
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect("/var/run/docker.sock")
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if content.startswith(b"DELETE ") and self._removal_breaks():
                    break
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _removal_breaks(self) -> bool:
        self._left -= 1
        return self._left < 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._open:
            end.close()


def swept(place: Machine, connection: EngineConnection, folder: Path, pulled: list[PulledImage]) -> Swept:
    network = IsolatedNetwork(place.name, connection)
    images = Images(
        remains=EngineRemains(
            place.name, connection, network=network_name(place.name), looking_up=threading.Lock(), now=later
        ),
        pulled=lambda: pulled,
        is_needed=lambda _: False,
        keeping=ImageKeeping(seconds=0, disk_pressure=100),
    )
    return Sweep(
        runtime=DockerEngine(place.name, connection, network),
        folders=DiskRunFolders(folder, user=USER),
        clock=SystemClock(),
        run_is_open=lambda _: False,
        job_is_open=lambda _: False,
        images=images,
    ).do()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("removals", [0, 2, 4])
def test_a_sweep_that_an_engine_breaks_off_is_finished_by_the_next_one(
    shelf: Shelf, ours: Things, theirs: Things, tmp_path: Path, removals: int
) -> None:
    place, pulled = shelf.place, [shelf.pull(shelf.offer("a"))]
    place.start(1, "import time; time.sleep(300)")
    failing = FailingEngine(tmp_path, removals=removals)
    try:
        broken = swept(place, EngineConnection(f"unix://{failing.path}", seconds=20), tmp_path, pulled)
    finally:
        failing.close()
        gc.collect()
    assert broken.error is not None
    assert len(broken.removed) == removals
    rest = swept(place, place.connection, tmp_path, pulled)
    assert (rest.error, len(rest.removed)) == (None, 5 - removals)
    assert place.engine.list_containers() == ()
    assert ours.there() == []
    assert not shelf.has(pulled[0].image_id)
    assert theirs.there() == ["Container", "Network", "Volume"]
