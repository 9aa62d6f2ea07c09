"""A node whose compute API listens, with data sets, a catalogue and images in a registry of its own.

Owns what such a node's configuration says. Must not know any single job.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from node_agent.domain.assets import derived_did
from tests.lab.agents import AgentProcess, merged
from tests.lab.consumer import Consumer, Container
from tests.lab.images import python_base, script_image
from tests.lab.registry import Registry, registry
from tests.lab.sandbox import SandboxLab
from tests.ports import free_port

PUBLISHER = "0x" + "b" * 40
LIMITS = {
    "concurrent_runs": 6,
    "cpus": 1,
    "memory": "64MiB",
    "pids": 40,
    "tmp_size": "1MiB",
    "output_size": "1MiB",
    "log_size": "64KiB",
    "run_time": "120s",
}

OBEDIENT = """\
import base64, json, os, sys, time, urllib.error, urllib.request

def env(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()

def write(value):
    with open(env("OUTPUT_FILE"), "w") as output:
        json.dump(value, output)

def call(method, path, token, body=None):
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + token}
    content = None if body is None else json.dumps(body).encode()
    url = env("HOST") + ":" + env("PORT") + env("API_PATH") + path
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

asked = json.load(open(env("INPUT_FILE")))
exec(compile(asked["kwargs"]["script"], "algorithm", "exec"))
"""
"""An algorithm of the vantage6 contract that does what it is told."""


def did_of(name: str) -> str:
    """Give the DID under which a node of these tests offers something."""
    return str(derived_did("tests", name))


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A data set, as the configuration says it."""

    label: str
    path: Path
    type: str = "csv"
    extras: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """Give the entry under `compute_api.data_sets`."""
        return {"label": self.label, "did": did_of(self.label), **self.extras}


@dataclass(frozen=True)
class Shelf:
    """The images jobs may use: a bare Python, and the algorithm that does as told, by what the registry calls them."""

    shop: Registry
    python: Container
    obedient: Container

    def catalogue(self) -> list[dict[str, Any]]:
        """Give the entry of the obedient algorithm."""
        return [
            {
                "did": did_of("obedient"),
                "owner": PUBLISHER,
                "image": self.obedient.image,
                "digest": self.obedient.digest,
                "contract": "vantage6",
            }
        ]


@contextlib.contextmanager
def shelf(client: docker.DockerClient) -> Iterator[Shelf]:
    """Put the images into a registry, for as long as they are wanted."""
    local = {"python": python_base(client), "obedient": script_image(client, "jobs-obedient", OBEDIENT)}
    with registry() as shop:
        pushed = {name: shop.push(client, tag, f"jobs/{name}:1") for name, tag in local.items()}
        try:
            yield Shelf(
                shop,
                **{
                    name: Container(each.reference.rpartition(":")[0], each.digest)
                    for name, each in pushed.items()
                },
            )
        finally:
            for each in pushed.values():
                with contextlib.suppress(docker.errors.ImageNotFound):
                    client.images.remove(each.pinned)


@dataclass(frozen=True, kw_only=True)
class JobSite:
    """A coordinating server, a node with a compute API, and how consumers reach it."""

    lab: SandboxLab
    shelf: Shelf
    agent: AgentProcess
    url: str

    def consumer(self, seed: int = 0x11) -> Consumer:
        """Give a consumer with a key of its own."""
        return Consumer(self.url, seed=seed)


def compute_settings(
    shelf_: Shelf, offers: Sequence[Offer], *, port: int, api: Mapping[str, Any], registries: Sequence[str]
) -> dict[str, Any]:
    """Say what a node with a compute API is configured with."""
    return {
        "limits": LIMITS,
        "databases": [{"label": offer.label, "type": offer.type, "uri": str(offer.path)} for offer in offers],
        "policy": {"algorithms": ["node-agent-lab/*", *(f"{host}/*" for host in registries)]},
        "compute_api": {
            "listen": f"127.0.0.1:{port}",
            "access": "addresses",
            "addresses": ["*"],
            "requests_per_second": 10_000,
            "data_sets": [offer.entry() for offer in offers],
            "algorithms": shelf_.catalogue(),
            **api,
        },
    }


@contextlib.contextmanager
def job_site(
    client: docker.DockerClient,
    offers: Sequence[Offer],
    *,
    api: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    agent_class: type[AgentProcess] = AgentProcess,
    other_registry: str | None = None,
) -> Iterator[JobSite]:
    """Run a coordinating server and a node; the agent is started here."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        images = stack.enter_context(shelf(client))
        lab = stack.enter_context(SandboxLab(("alpha",)))
        registries = [images.shop.host, *([] if other_registry is None else [other_registry])]
        said = compute_settings(images, offers, port=port, api=api, registries=registries)
        agent = agent_class(
            server_url=lab.url, api_key=lab.api_keys["alpha"], settings=merged(said, settings or {})
        )
        stack.enter_context(agent)
        yield JobSite(lab=lab, shelf=images, agent=agent, url=f"http://127.0.0.1:{port}")
