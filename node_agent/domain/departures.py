"""What a researcher is told of a container that did not end by itself.

Owns the sentences. Must not know how an engine finds out, or what the server is told.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from node_agent.domain.container import ContainerReport, EndedBy

REMOVED: Final = (
    "The container disappeared before its result could be read: somebody removed it from the node's engine"
    " (docker rm, docker container prune), or the engine was reset."
)
_SAY_AGAIN: Final = " The algorithm itself need not be at fault: the task can be sent again."
_TAKEN: Final[Mapping[EndedBy, str]] = MappingProxyType(
    {
        EndedBy.SOMEBODY: (
            "The algorithm was ended from outside (exit code {code}): somebody on the node's machine asked its engine"
            " to (docker kill, docker stop or docker rm), or the engine did so when it was restarted."
            + _SAY_AGAIN
        ),
        EndedBy.ENGINE: (
            "The algorithm was ended together with the node's engine (exit code {code}), which was stopped or restarted,"
            " or the whole machine was." + _SAY_AGAIN
        ),
    }
)


def why_taken(report: ContainerReport) -> str:
    """Say who took an algorithm's container away from it; empty when it ended by itself, or nobody knows."""
    return _TAKEN.get(report.ended_by, "").format(code=report.exit_code)


def while_paused(report: ContainerReport) -> str:
    """Say that a container used up its time without working, if it did."""
    return (
        " At that moment it was paused, which somebody else had asked the engine for."
        if report.paused
        else ""
    )
