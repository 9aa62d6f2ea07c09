"""Why a run did not complete, in plain words for the author of the algorithm.

Owns the sentences and the signs in a log they go by. Must not know where status and log come from.
"""

import re
from collections.abc import Mapping
from typing import Final

from node_agent.domain.run import Status

_NOTE = re.compile(r"^\[node\] (?P<said>.+)$", re.MULTILINE)
_SIGNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(r"Method '(?P<name>[^'\n]{1,100})' not found"),
        "The image has no method '{name}': look at --method.",
    ),
    (
        re.compile(r"(?P<what>got an unexpected keyword argument '[^'\n]{1,100}')"),
        "The method was called with wrong arguments: it {what}. Look at --kwargs.",
    ),
    (
        re.compile(r"(?P<what>missing \d+ required (positional|keyword-only) arguments?: [^\n]{1,200})"),
        "The method was called with too few arguments: {what}. Look at --kwargs and --args.",
    ),
    (
        re.compile(r"(?P<what>takes (from )?\d+ (to \d+ )?positional arguments? but \d+ (was|were) given)"),
        "The method was called with too many arguments: it {what}. Look at --args.",
    ),
    (
        re.compile(r"(?P<what>(?:UserInputError|AlgorithmExecutionError): [^\n]{1,300})"),
        "The algorithm gave up: {what}.",
    ),
    (
        re.compile(r"No module named '(?P<name>[^'\n]{1,100})'"),
        "The image lacks the Python module '{name}'.",
    ),
    (
        re.compile(r"(?P<what>exec(?: format error|utable file not found)[^\n]{0,100})"),
        "The image cannot be started here: {what}.",
    ),
    (
        re.compile(
            r"^(?P<what>(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception)\b[^\n]{0,300})$", re.MULTILINE
        ),
        "The algorithm crashed: {what}",
    ),
)
_WITHOUT_SIGN: Final[Mapping[str, str]] = {
    Status.CRASHED: "The algorithm crashed; what it said last stands in its log.",
    Status.NOT_ALLOWED: "The nodes of this sandbox do not allow this image: see --image of `sandbox up`.",
    Status.KILLED: "Somebody killed the task.",
    Status.START_FAILED: "The container could not be started.",
    Status.FAILED: "The run failed.",
}
_MISSING_IMAGE: Final = (
    "The image {image} is not on this machine and could not be pulled: is its name right, is it built?"
)


def reason_of(status: str, log: str, *, image: str, method: str) -> str:
    """Say why a run did not complete; empty when it did."""
    if status == Status.COMPLETED:
        return ""
    if status == Status.NO_DOCKER_IMAGE:
        return _MISSING_IMAGE.format(image=image)
    return _from_log(log) or _node_said(log) or _WITHOUT_SIGN.get(status, f"Method {method}: {status}.")


def _from_log(log: str) -> str:
    for pattern, sentence in _SIGNS:
        # what an algorithm dies of stands at the end
        found = list(pattern.finditer(log))
        if found:
            return sentence.format(**found[-1].groupdict())
    return ""


def _node_said(log: str) -> str:
    found = _NOTE.findall(log)
    return str(found[-1]) if found else ""
