"""Whether a registry accepts an account, asked through the engine, which is who will use it.

Owns that one question. Must not know where the account comes from.
"""

from docker.auth import INDEX_NAME, INDEX_URL

from node_agent.runtime.connection import EngineConnection, one_line
from node_agent.runtime.registries import Account


def refusal_of(account: Account, connection: EngineConnection) -> str:
    """Log in and say why it was refused; empty when it was not. Raises EngineUnreachable."""
    place = INDEX_URL if account.host == INDEX_NAME else account.host
    with connection.client() as client:
        response = client.post(
            f"{client.base_url}/v{client.api_version}/auth",
            json={**account.fields, "serveraddress": place},
            timeout=client.timeout,
        )
    if response.ok:
        return ""
    try:
        return one_line(str(response.json()["message"]))
    except (ValueError, KeyError, TypeError):
        return f"the engine answered {response.status_code}"
