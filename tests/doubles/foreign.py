"""Messages that this node's key clearly does not open."""

from collections.abc import Callable, Iterable, Iterator

from node_agent.payload.envelope import EnvelopeError
from node_agent.payload.keys import PrivateKey

Reader = Callable[[Iterable[bytes], PrivateKey], Iterator[bytes]]


def for_somebody_else(make: Callable[[], bytes], read: Reader, own: PrivateKey) -> bytes:
    """Make a message for another key that *own* does not open: once in hundreds the noise it gives looks right."""
    while True:
        message = make()
        try:
            list(read([message], own))
        except EnvelopeError:
            return message
