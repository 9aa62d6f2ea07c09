"""Logs, sharing, registries, variables: everything that is neither a place nor a rule.

Owns these few translations. Must not know the rest of the old node.
"""

import re

from node_agent.config.document import Loc
from node_agent.config.vantage6.draft import Draft, OwnFile, Weight
from node_agent.config.vantage6.sources import put_variable
from node_agent.domain.contract import is_taken

_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "critical": "error",
    "notset": "debug",
}


def carry_logging(draft: Draft) -> None:
    """Carry the level over; the rest is the service's business."""
    level = draft.text("logging", "level")
    if level is None:
        return
    known = _LEVELS.get(level.lower())
    draft.put(("logging", "level"), known or "info")
    if known is None or known != level.lower():
        draft.say(
            Weight.NOTE,
            ("logging", "level"),
            f"was {level}; this is the nearest here",
            here=("logging", "level"),
        )
    if draft.text("logging", "format"):
        draft.row(Weight.NOTE, ("logging", "format"), here=("logging",))


def carry_sharing(draft: Draft) -> None:
    """Carry over what server and researchers are told."""
    config = draft.truth("share_config")
    if config is not None:
        draft.put(("share", "node_facts"), config)
    logs = draft.truth("share_algorithm_logs")
    if logs is None:
        draft.say(
            Weight.NOTE,
            (),
            "the old node sent the lines of a log while a run went on; share.live_logs: true does the same, without it the "
            "log is sent at the end",
        )
        return
    draft.put(("share", "algorithm_logs"), "full" if logs else "off")
    if logs:
        draft.put(("share", "live_logs"), value=True)


def carry_variables(draft: Draft) -> None:
    """Carry the variables of algorithms over."""
    for name in draft.entries("algorithm_env"):
        if is_taken(name):
            draft.say(
                Weight.CHANGED, ("algorithm_env", name), "is left out: the node or the image sets it itself"
            )
            continue
        put_variable(draft, ("algorithm_env", name), ("algorithm_env", name))


def carry_run_context(draft: Draft) -> None:
    """Carry over whether runs get a description of themselves."""
    wanted = draft.truth("run_context_file")
    if wanted is not None:
        draft.put(("run_context_file",), wanted)


def carry_registries(draft: Draft) -> None:
    """Carry the logins to registries over; their passwords move into files."""
    for old in draft.blocks("docker_registries"):
        host, user = draft.text(*old, "registry"), draft.text(*old, "username")
        password = draft.text(*old, "password")
        if not host or not user or not password:
            draft.say(Weight.DECIDE, old, "has no registry, no username or no password; it is left out")
            continue
        here: Loc = ("images", "registries", draft.count("images", "registries"))
        draft.put((*here, "host"), _host(draft, old, here, host))
        draft.put((*here, "username"), user)
        draft.put((*here, "password"), OwnFile(password, f"{draft.name}.registry-{here[-1]}"))
        draft.row(Weight.NOTE, (*old, "password"), here=(*here, "password"))


def _host(draft: Draft, old: Loc, here: Loc, written: str) -> str:
    host = re.sub(r"^https?://", "", written).partition("/")[0]
    if host != written:
        text = "is the host alone: a login here counts for the whole registry"
        draft.say(Weight.CHANGED, (*old, "registry"), text, here=(*here, "host"))
    return host
