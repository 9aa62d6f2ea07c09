"""What the server writes and reads: the only package that sees its dictionaries and strings.

Owns field names, formats and bounds. Everything from the server is checked here, once; unknown fields are
ignored. Must not know calls, sockets or tokens.
"""

from node_agent.server.wire.credentials import (
    Claims,
    container_token_body,
    login_body,
    parse_claims,
    parse_container_token,
    parse_tokens,
)
from node_agent.server.wire.events import (
    is_about_this_node,
    log_event,
    parse_hint,
    parse_kill,
    status_event,
    task_with_an_ended_run,
)
from node_agent.server.wire.identity import (
    parse_identity,
    parse_node,
    parse_organization_name,
    parse_public_key,
    parse_version,
    public_key_body,
)
from node_agent.server.wire.runs import (
    FINISHED_ALREADY,
    NO_BLOB,
    NO_RUNS,
    Page,
    RunState,
    claim_body,
    final_body,
    has_blob_store,
    is_told,
    parse_blob,
    parse_page,
    parse_run,
    parse_run_state,
    parse_task,
    refusal_body,
    status_body,
)
from node_agent.server.wire.shapes import UUID, format_time, parse_time
from node_agent.server.wire.stores import (
    Algorithm,
    Algorithms,
    parse_algorithms,
    parse_store_url,
)

__all__ = [
    "FINISHED_ALREADY",
    "NO_BLOB",
    "NO_RUNS",
    "UUID",
    "Algorithm",
    "Algorithms",
    "Claims",
    "Page",
    "RunState",
    "claim_body",
    "container_token_body",
    "final_body",
    "format_time",
    "has_blob_store",
    "is_about_this_node",
    "is_told",
    "log_event",
    "login_body",
    "parse_algorithms",
    "parse_blob",
    "parse_claims",
    "parse_container_token",
    "parse_hint",
    "parse_identity",
    "parse_kill",
    "parse_node",
    "parse_organization_name",
    "parse_page",
    "parse_public_key",
    "parse_run",
    "parse_run_state",
    "parse_store_url",
    "parse_task",
    "parse_time",
    "parse_tokens",
    "parse_version",
    "public_key_body",
    "refusal_body",
    "status_body",
    "status_event",
    "task_with_an_ended_run",
]
