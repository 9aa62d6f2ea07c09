"""What is fuzzed: each target takes bytes, and ends without an error or with one that its caller expects.

Owns the list of targets and what each may raise. Must not know how the bytes are made.
"""

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from werkzeug.test import EnvironBuilder

from node_agent.compute.fields import BadFields, Fields
from node_agent.domain.policy import parse_image
from node_agent.domain.ports import NodeIdentity
from node_agent.domain.task import OrganizationId
from node_agent.errors import ServerUnreachable
from node_agent.payload.codec import PlainCodec
from node_agent.payload.envelope import EnvelopeError, unseal, unseal_blob
from node_agent.payload.jsontext import is_json
from node_agent.payload.keys import PrivateKey, PublicKey, create_private_key
from node_agent.payload.longtext import BadJson, spool_json
from node_agent.proxy.routes import WrongMethod, find_route
from node_agent.runtime.logcut import copy_cut
from node_agent.runtime.logfollow import entries_after, frames_of
from node_agent.server import wire
from node_agent.server.exchange import Reply, parse_json

PIECE = 7
"""Bytes a piece: borders fall inside of everything."""
CLIMBING = ("..", "%", "\\", "//", "?", "#")


def pieces(content: bytes) -> list[bytes]:
    """Cut *content* as a network would."""
    return [content[at : at + PIECE] for at in range(0, len(content), PIECE)]


def server_json(content: bytes) -> None:
    """Read answers of the server, each as every kind of answer."""
    reply = Reply(call="fuzz", status=200, body=content)
    for parse in (
        *(
            wire.parse_tokens,
            wire.parse_container_token,
            wire.parse_version,
            wire.parse_node,
            wire.parse_public_key,
        ),
        *(
            wire.parse_task,
            wire.parse_run_state,
            wire.parse_blob,
            wire.parse_store_url,
            wire.parse_algorithms,
        ),
    ):
        with suppress(ServerUnreachable):
            parse(reply)
    with suppress(ServerUnreachable):
        wire.parse_page(reply, PlainCodec())
    with suppress(ServerUnreachable):
        wire.parse_identity(node=reply, organization=reply, collaboration=reply)


def claims(content: bytes) -> None:
    """Read what a token says of itself."""
    with suppress(ServerUnreachable):
        wire.parse_claims(content)


def spooled_json(content: bytes) -> None:
    """Read JSON with long texts in files; it accepts what the standard library accepts, and nothing else."""
    try:
        expected = json.loads(content.decode())
    except (ValueError, RecursionError):
        expected = BadJson
    with tempfile.TemporaryDirectory() as folder, suppress(BadJson):
        tree: Any = spool_json(pieces(content), Path(folder), threshold=1 << 20, limit=1 << 20)
        assert expected is not BadJson, "accepted what is no JSON"
        assert repr(tree) == repr(expected)


def json_text(content: bytes) -> None:
    """Tell whether bytes are JSON, in pieces and in one."""
    assert is_json(pieces(content)) == is_json([content])


def socket_event(content: bytes) -> None:
    """Read what comes over the socket."""
    with suppress(ValueError):
        event = parse_json(content)
        identity = NodeIdentity(
            node_id=1,
            node_name="node",
            organization_id=OrganizationId(1),
            organization_name="alpha",
            collaboration_id=1,
            collaboration_name="all",
            encrypted=False,
        )
        wire.parse_hint(event)
        wire.task_with_an_ended_run(event)
        wire.is_about_this_node(event, identity)
        wire.parse_kill(event, identity)


def proxy_route(content: bytes) -> None:
    """Find the route of a call: what is found is a path of the table, without anything that climbs."""
    method, _, path = content.decode("latin-1").partition(" ")
    with suppress(WrongMethod):
        route = find_route(method, path)
        assert route is None or not any(part in route.path for part in CLIMBING)


@cache
def private_key() -> PrivateKey:
    """Return a key for the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        return create_private_key(Path(folder, "key.pem"))


def envelope(content: bytes) -> None:
    """Open what may be sealed."""
    for opened in (unseal, unseal_blob):
        with suppress(EnvelopeError):
            list(opened(pieces(content), private_key()))


def public_key(content: bytes) -> None:
    """Read a public key as the server has it."""
    with suppress(ValueError):
        PublicKey.from_wire(content.decode("latin-1"))


def image_name(content: bytes) -> None:
    """Take an image reference apart; what was taken apart can be put together again."""
    reference = content.decode("utf-8", "surrogateescape")
    image = parse_image(reference)
    if image is not None:
        parts = (image.name, f":{image.tag}" if image.tag else "", f"@{image.digest}" if image.digest else "")
        assert "".join(parts) == reference


def compute_fields(content: bytes) -> None:
    """Read the fields of a request to the compute API, from its body and from its query."""
    for how in ({"data": content}, {"query_string": content.decode("latin-1")}):
        with suppress(BadFields):
            fields = Fields.of(EnvironBuilder(method="POST", **how).get_request())
            for name in ("consumerAddress", "nonce", "environment", "datasets.0.documentId"):
                with suppress(BadFields):
                    fields.text(name)
                with suppress(BadFields):
                    fields.whole(name)
                with suppress(BadFields):
                    fields.nested(name)
                with suppress(BadFields):
                    fields.entries(name)


def log_lines(content: bytes) -> None:
    """Take a stream of the engine apart and cut it; no more than the limit is kept."""
    kept = io.BytesIO()
    copy_cut(frames_of(io.BytesIO(content)), kept, limit=100)
    assert kept.tell() <= 100
    list(entries_after("", frames_of(io.BytesIO(content))))


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(
            server_json,
            claims,
            spooled_json,
            json_text,
            socket_event,
            proxy_route,
            envelope,
            public_key,
            image_name,
        ),
        *(compute_fields, log_lines),
    )
}
