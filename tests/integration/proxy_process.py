"""The proxy in a process of its own, so that its memory can be measured: URL, folder, and a key file if encrypted."""

import sys
from pathlib import Path

import structlog

from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobId, TaskId
from node_agent.payload.keys import PrivateKey
from node_agent.proxy.app import ProxyApp
from node_agent.proxy.inquiry import Caller
from node_agent.proxy.sealer import EnvelopeSealer, PlainSealer
from node_agent.proxy.server import ProxyServer
from node_agent.proxy.spool import Spool
from node_agent.server.address import ServerAddress
from node_agent.server.client import HttpServer
from node_agent.server.exchange import Exchange
from node_agent.server.tokens import Tokens

MAX_BODY = 512 << 20


def main(url: str, folder: str, *key_file: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    exchange = Exchange(ServerAddress.of(url))
    server = HttpServer(exchange, Tokens(exchange, Secret("never used")))
    spool = Spool(Path(folder), total=16 * MAX_BODY)
    app = ProxyApp(
        forward=server.forward,
        caller_of_token=lambda digest: Caller(RunId(7), TaskId(1), JobId(1), 1, 5),
        on_subtask=lambda run: None,
        spool=spool,
        max_body=MAX_BODY,
    )
    key = PrivateKey.load(Path(key_file[0])) if key_file else None
    app.seal_with(PlainSealer() if key is None else EnvelopeSealer(key, lambda organization: key.public))
    proxy = ProxyServer(app, address="127.0.0.1", port=0, spool=spool, max_body=MAX_BODY)
    proxy.start()
    print(proxy.port, flush=True)
    sys.stdin.read()
    print(spool.taken, flush=True)
    proxy.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
