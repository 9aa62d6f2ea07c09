"""ocean.py (`ocean-lib` from PyPI) in a process of its own, driven by JSON lines.

Started by tests/lab/ocean.py with the Python of that library's environment. The first line on standard input says where
the node is and which key signs; every further line names one of the calls below and its arguments, and is answered by
one line. Knows nothing of the project: only ocean-lib is installed where it runs.
"""

# Checked with the project's tools, which do not see that environment.
# mypy: disable-error-code="import-not-found"

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import enforce_typing

# The library's checks of types stumble over `Any` since Python 3.11; everything else is as it was published.
enforce_typing.enforce_types = lambda function: function

from eth_account import Account  # noqa: E402 - the line above has to come first
from ocean_lib.aquarius import Aquarius  # noqa: E402
from ocean_lib.data_provider.data_service_provider import DataServiceProvider  # noqa: E402
from ocean_lib.models.compute_input import ComputeInput  # noqa: E402
from ocean_lib.ocean.ocean_assets import OceanAssets  # noqa: E402
from ocean_lib.ocean.ocean_compute import OceanCompute  # noqa: E402
from ocean_lib.structures.algorithm_metadata import AlgorithmMetadata  # noqa: E402
from ocean_lib.web3_internal.constants import ZERO_ADDRESS  # noqa: E402

NO_CHAIN = 0
QUOTE_SECONDS = 3600

Job = dict[str, Any]


class Researcher:
    """Somebody with a key who uses the library as its documentation shows, as far as no chain is needed."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._wallet = Account.from_key(key)
        self._compute = OceanCompute({"METADATA_CACHE_URI": url}, DataServiceProvider)
        # Its constructor wants to know contracts on a chain.
        self._assets = OceanAssets.__new__(OceanAssets)

    def address(self) -> str:
        """Give the address of the key."""
        return str(self._wallet.address)

    def is_valid(self) -> bool:
        """Tell whether the library takes the node for a provider."""
        return bool(DataServiceProvider.is_valid_provider(self._url))

    def environments(self) -> list[dict[str, Any]]:
        """List the environments."""
        return list(self._compute.get_c2d_environments(self._url, NO_CHAIN))

    def free_environment(self) -> str:
        """Name the environment the library would choose."""
        return str(self._compute.get_free_c2d_environment(self._url, NO_CHAIN)["id"])

    def pay(
        self, data_set: str, environment: str, algorithm: str = "", code: Mapping[str, Any] | None = None
    ) -> list[str | None]:
        """Do what would be paying, and give what stands for it then: for the data set, and for the algorithm."""
        chosen = self._input(algorithm, "") if code is None else AlgorithmMetadata(code)
        paid, paid_algorithm = self._assets.pay_for_compute_service(
            [self._input(data_set, "")],
            chosen,
            environment,
            int(time.time()) + QUOTE_SECONDS,
            ZERO_ADDRESS,
            {"from": self._wallet},
            self._wallet.address,
        )
        return [paid[0].transfer_tx_id, paid_algorithm and paid_algorithm.transfer_tx_id]

    def start(
        self,
        data_set: str,
        environment: str,
        *,
        order: str = "none",
        algorithm: str = "",
        code: Mapping[str, Any] | None = None,
        custom: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a job with an algorithm of the node's catalogue, or with code of one's own."""
        registered = None if code is not None else self._input(algorithm, order)
        return str(
            self._compute.start(
                self._wallet,
                self._input(data_set, order),
                environment,
                algorithm=registered,
                algorithm_meta=None if code is None else AlgorithmMetadata(code),
                algorithm_algocustomdata=custom,
            )
        )

    def status(self, data_set: str, job: str) -> Job:
        """Ask how a job is."""
        document = self._document(data_set)
        return dict(self._compute.status(document, document.services[0], job, self._wallet))

    def result(self, data_set: str, job: str, index: int) -> str:
        """Fetch one file a job left."""
        document = self._document(data_set)
        content = self._compute.result(document, document.services[0], job, index, self._wallet)
        return str(content.decode())

    def logs(self, data_set: str, job: str) -> list[str]:
        """Fetch the logs of a job."""
        document = self._document(data_set)
        found = self._compute.compute_job_result_logs(
            document, document.services[0], job, self._wallet, "algorithmLog"
        )
        return [content.decode() for content in found]

    def stop(self, data_set: str, job: str) -> Job:
        """Stop a job."""
        document = self._document(data_set)
        return dict(self._compute.stop(document, document.services[0], job, self._wallet))

    def delete(self, data_set: str, job: str) -> Job:
        """Delete a job."""
        service = self._document(data_set).services[0]
        return dict(DataServiceProvider.delete_compute_job(data_set, job, service, self._wallet))

    def _document(self, did: str) -> Any:
        document = Aquarius.get_instance(self._url).get_ddo(did)
        if document is None:
            raise LookupError(f"the node knows no {did}")
        return document

    def _input(self, did: str, order: str) -> Any:
        document = self._document(did)
        return ComputeInput(document, document.services[0], order)


def calls(researcher: Researcher) -> Mapping[str, Callable[..., Any]]:
    """Give what may be called, by name."""
    return {name: getattr(researcher, name) for name in vars(Researcher) if not name.startswith("_")}


def answer(known: Mapping[str, Callable[..., Any]], request: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one request; a failure is an answer too."""
    try:
        return {"result": known[request["call"]](**request["arguments"])}
    except Exception as error:  # noqa: BLE001 - it is told to the test that asked
        return {"error": f"{type(error).__name__}: {error}"}


def own_output() -> TextIO:
    """Keep standard output for answers: whatever the library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Answer until the input ends."""
    answers = own_output()
    known = calls(Researcher(**json.loads(sys.stdin.readline())))
    print(json.dumps({"result": "ready"}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(known, json.loads(line)), default=str), file=answers)


if __name__ == "__main__":
    main()
