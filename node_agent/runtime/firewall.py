"""The rule that closes the host to the isolated network: one nftables table per agent.

A container network without a way out still reaches every service of the host that listens on all addresses, and what
listens for it can be reached by everybody on the host. The table names the bridge interface and the address of this
machine on it only, so it may be loaded before the network exists and stays right when it is made anew.
Owns the table and nothing else of the machine's firewall. Must not decide whether the agent may go on without it: it
says what it could do, and the probe says what is so.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from node_agent.runtime.connection import one_line

SECONDS = 10
_USUAL_PLACES = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class FirewallFacts:
    """Whether the rule was loaded just now, and why not."""

    loaded: bool
    reason: str = ""


def short_hash(name: str) -> str:
    """Give the part of an agent's name that fits where names are short."""
    return hashlib.sha256(name.encode()).hexdigest()[:11]


def bridge_name(name: str) -> str:
    """Name the bridge interface of an agent's network; the kernel allows fifteen letters."""
    return f"na-{short_hash(name)}"


def table_name(name: str) -> str:
    """Name the nftables table of an agent."""
    return f"node_agent_{short_hash(name)}"


def rules(name: str, *, gateway: str, proxy_port: int, gates: Iterable[int] = ()) -> str:
    """Write the table: from the bridge only the proxy and the *gates* are reachable, and nothing passes through it.

    Proxy and gates are reachable from the bridge only: not by other containers, and not by users of this machine.
    """
    table, bridge = table_name(name), bridge_name(name)
    further = sorted({*gates} - {proxy_port})
    ports = f"{{ {', '.join(map(str, [proxy_port, *further]))} }}" if further else f"{proxy_port}"
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{bridge}" ip daddr {gateway} tcp dport {ports} accept
    iifname "{bridge}" drop
    ip daddr {gateway} tcp dport {ports} reject with tcp reset
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{bridge}" drop
    oifname "{bridge}" drop
  }}
}}
"""


def ensure_firewall(name: str, *, gateway: str, proxy_port: int, gates: Iterable[int] = ()) -> FirewallFacts:
    """Load the table in one atomic step, replacing an earlier one of this agent."""
    return _nft(rules(name, gateway=gateway, proxy_port=proxy_port, gates=gates))


def remove_firewall(name: str) -> FirewallFacts:
    """Remove the agent's table; already gone is fine."""
    table = table_name(name)
    return _nft(f"table inet {table}\ndelete table inet {table}\n")


def _nft(script: str) -> FirewallFacts:
    program = shutil.which("nft") or shutil.which("nft", path=_USUAL_PLACES)
    if program is None:
        return FirewallFacts(
            loaded=False, reason="the program nft (Debian package nftables) is not installed"
        )
    try:
        done = subprocess.run(
            [program, "-f", "-"], input=script, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return FirewallFacts(loaded=False, reason=f"nft could not be run: {one_line(str(error))}")
    if done.returncode != 0:
        return FirewallFacts(loaded=False, reason=f"nft refused the rule: {one_line(done.stderr)}")
    return FirewallFacts(loaded=True)
