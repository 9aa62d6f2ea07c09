"""The configuration: YAML in, frozen settings out, or every fault at once.

document    the file as a tree, with lines; `${NAME}` replaced
values      kinds of values: sizes, durations, patterns, secrets
shape       every setting there is
machine     what loading asks of the machine
faults      what is wrong, in sentences
settings    the result, and `load`
reloading   what changed in a file, and which of it counts without a restart
schema      the shape as a JSON Schema, with the sentences of `meanings`
showing     every setting as it counts
vantage6    the way over from a vantage6 node
"""

from node_agent.config.machine import ANY_MACHINE, THIS_MACHINE, Machine
from node_agent.config.reloading import Reread, reread
from node_agent.config.settings import (
    ImageSettings,
    RegistryLogin,
    ServerSettings,
    Settings,
    load,
)
from node_agent.config.shape import LimitsSection, LoggingSection, NetworkSection, ShareSection

__all__ = [
    "ANY_MACHINE",
    "THIS_MACHINE",
    "ImageSettings",
    "LimitsSection",
    "LoggingSection",
    "Machine",
    "NetworkSection",
    "RegistryLogin",
    "Reread",
    "ServerSettings",
    "Settings",
    "ShareSection",
    "load",
    "reread",
]
