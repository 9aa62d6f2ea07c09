"""The embedded coordinating server: REST and Socket.IO over one SQLite database.

For demos, development and tests only. Must not know the agent's own parts.
"""

from node_agent.sandbox.server.faults import Fault, Faults
from node_agent.sandbox.server.instance import SandboxServer
from node_agent.sandbox.server.population import CollaborationPlan, Credentials, Plan
from node_agent.sandbox.server.tokens import Lifetimes

__all__ = [
    "CollaborationPlan",
    "Credentials",
    "Fault",
    "Faults",
    "Lifetimes",
    "Plan",
    "SandboxServer",
]
