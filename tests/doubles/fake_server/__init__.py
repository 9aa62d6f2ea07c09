"""A coordinating server for tests: real HTTP and real Socket.IO on loopback, in threads of this process.

    with FakeServer() as server:
        run_id = server.create_task(image="some/image:1", input=b"{}").run_ids[0]

It answers as version 4 of the protocol was recorded to answer, as far as a node and its algorithms need it, and it can
be told to fail. The contract tests hold it against the real server.
"""

from tests.doubles.fake_server.faults import Fault
from tests.doubles.fake_server.server import FakeServer
from tests.doubles.fake_server.world import Created

__all__ = ["Created", "FakeServer", "Fault"]
