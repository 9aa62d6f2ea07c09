"""The filter of system calls under which every container of the agent runs.

Owns the profile beside this file (`seccomp.json`, in the form that Docker and Podman read) and the ways engines take
it. Must not know containers. Why each group of calls is allowed stands in the profile; why it is an own one, in ADR 0013.
"""

import hashlib
import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

PROFILE: Final = Path(__file__).with_name("seccomp.json")
_PREFIXES: Final = ("seccomp=", "seccomp:")


@cache
def inline_option() -> str:
    """Return the security option with the whole profile in it, as a Docker engine takes it."""
    profile = json.loads(PROFILE.read_text())
    for rule in profile["syscalls"]:
        del rule["comment"]
    return "seccomp=" + json.dumps(profile, separators=(",", ":"))


def file_option() -> str:
    """Return the security option that names the profile's file, as Podman takes it: it opens what Docker parses."""
    return f"seccomp={PROFILE}"


@lru_cache(maxsize=16)
def comparable(option: str) -> str:
    """Return a short text that is equal for two options with the same filter, however each is written."""
    prefix = next((prefix for prefix in _PREFIXES if option.startswith(prefix)), None)
    if prefix is None:
        return option
    value = option.removeprefix(prefix)
    try:
        profile = json.dumps(json.loads(value), sort_keys=True)
    except ValueError:
        return f"seccomp={value[:256]}"
    return f"seccomp profile {hashlib.sha256(profile.encode()).hexdigest()[:12]}"
