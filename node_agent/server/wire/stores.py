"""What algorithm stores say, and where the server says they are."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from node_agent.server.exchange import Reply
from node_agent.server.wire.shapes import Listed, Wire, shaped

_APPROVED = "approved"


class _Store(Wire):
    url: Annotated[str, Field(max_length=2048)]


class _Algorithm(Wire):
    image: Annotated[str, Field(max_length=1024)] | None = None
    digest: Annotated[str, Field(max_length=128)] | None = None
    status: Annotated[str, Field(max_length=128)] | None = None
    invalidated_at: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One algorithm of a store."""

    image: str
    digest: str
    is_approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms:
    """One page of a store's algorithms; what cannot be understood is left out."""

    algorithms: tuple[Algorithm, ...]
    has_next: bool


def parse_store_url(reply: Reply) -> str:
    """Read the address of an algorithm store, as the server keeps it."""
    return shaped(_Store, reply.json(), reply.call).url


def parse_algorithms(reply: Reply) -> Algorithms:
    """Read one page of a store's algorithms."""
    page = shaped(Listed, reply.json(), reply.call)
    found = (_algorithm(element) for element in page.data)
    return Algorithms(
        algorithms=tuple(algorithm for algorithm in found if algorithm is not None),
        has_next=page.links.next is not None,
    )


def _algorithm(element: object) -> Algorithm | None:
    try:
        read = _Algorithm.model_validate(element)
    except ValidationError:
        return None
    if read.image is None or read.digest is None:
        return None
    # an older store does not tell the status, and lists only what is approved
    approved = read.status in {None, _APPROVED} and read.invalidated_at is None
    return Algorithm(image=read.image, digest=read.digest, is_approved=approved)
