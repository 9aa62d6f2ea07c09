"""Server, state and keys: where the old node was and what it was allowed in with."""

import re
from pathlib import PurePosixPath

from node_agent.config.vantage6.draft import Draft, OwnFile, Weight

_USUAL = {"https": "443", "http": "80"}
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]+")
_AUTHORITIES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_LONGEST_NAME = 41


def valid_name(text: str) -> str:
    """Make a name of ours out of any text."""
    return _NOT_IN_NAMES.sub("-", text.lower()).strip("-")[:_LONGEST_NAME].strip("-") or "node"


def carry_server(draft: Draft) -> None:
    """Put the parts of the address together."""
    written = (draft.text("server_url") or "").strip()
    if not written:
        draft.say(Weight.MUST, ("server_url",), "is missing; write the address of the server with its path")
        return
    if "://" not in written:
        draft.say(
            Weight.MUST,
            ("server_url",),
            "has no https:// or http://; check the address",
            here=("server", "url"),
        )
        written = f"https://{written}"
    draft.put(("server", "url"), _address(draft, written.rstrip("/")))


def _address(draft: Draft, url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if host.partition(":")[0] == "host.docker.internal":
        draft.say(
            Weight.NOTE,
            ("server_url",),
            "host.docker.internal is this machine, seen from a container; the agent calls it localhost",
            here=("server", "url"),
        )
        host = f"localhost{host.removeprefix('host.docker.internal')}"
    api_path = (draft.text("api_path") or "").strip("/")
    whole = f"{scheme}://{host}{_port(draft, scheme, host)}{slash}{path}"
    return f"{whole}/{api_path}" if api_path else whole


def _port(draft: Draft, scheme: str, host: str) -> str:
    port = draft.text("port")
    if not port or port == _USUAL.get(scheme):
        return ""
    if ":" in host:
        draft.say(
            Weight.CHANGED,
            ("port",),
            "stands in server_url, too; the one there is kept",
            here=("server", "url"),
        )
        return ""
    return f":{port}"


def carry_api_key(draft: Draft) -> None:
    """Move the API key into a file of its own."""
    key = draft.text("api_key")
    if not key:
        draft.say(
            Weight.MUST,
            ("api_key",),
            "is missing; write the node's API key into a file and name it as api_key_file",
        )
        return
    draft.put(("server", "api_key"), OwnFile(key, f"{draft.name}.key"))
    draft.row(Weight.NOTE, ("api_key",), here=("server", "api_key"))


def carry_state(draft: Draft) -> None:
    """Choose a place for the state."""
    draft.put(("state_dir",), f"/var/lib/node-agent/{draft.name}")
    if draft.text("task_dir"):
        draft.row(Weight.NOTE, ("task_dir",), here=("state_dir",))


def carry_encryption(draft: Draft) -> None:
    """Name the private key of an encrypted collaboration."""
    enabled = draft.truth("encryption", "enabled")
    key = draft.text("encryption", "private_key")
    here = ("encryption", "private_key")
    if not enabled:
        if key:
            draft.say(
                Weight.NOTE, ("encryption", "private_key"), "is left out: encryption is not enabled there"
            )
        return
    if key and PurePosixPath(key).is_absolute():
        draft.put(here, key)
        draft.say(
            Weight.NOTE,
            ("encryption", "private_key"),
            "must be readable by the agent's user and by nobody else (chmod 600); keep a copy",
            here=here,
        )
        return
    draft.put(here, str(draft.folder / f"{draft.name}.pem"))
    draft.say(
        Weight.MUST,
        ("encryption", "private_key"),
        f"stood in the old node's data folder as {key or 'private_key.pem'} (`v6 node files` shows the folder); copy it to "
        "this path, readable by the agent's user only. A new key would make older results unreadable",
        here=here,
    )


def carry_node_environment(draft: Draft) -> None:
    """Name the certificate authorities; everything else belongs to the service."""
    for name in draft.entries("node_extra_env"):
        here = ("server", "ca_bundle")
        old = ("node_extra_env", name)
        path = draft.text(*old) or ""
        if name not in _AUTHORITIES or here in draft.values:
            draft.say(Weight.DECIDE, old, _service_variable(name))
            continue
        draft.put(here, _outside(draft, path))
        draft.say(
            Weight.NOTE, old, "is the file of certificate authorities, as this machine names it", here=here
        )


def _service_variable(name: str) -> str:
    return (
        f"belongs to the service now, if it is still needed: systemctl edit node-agent@…, Environment={name}=…; the usual "
        "HTTPS_PROXY and NO_PROXY are honoured there"
    )


def _outside(draft: Draft, path: str) -> str:
    """Give a path of the old node's container as this machine has it."""
    for _, mount in draft.texts("node_extra_mounts"):
        source, _, target = mount.partition(":")
        target = target.partition(":")[0]
        if target and (path == target or path.startswith(f"{target}/")):
            return source + path.removeprefix(target)
    return path


def carry_hosts(draft: Draft) -> None:
    """Say which names the machine has to know."""
    for host in draft.entries("node_extra_hosts"):
        old = ("node_extra_hosts", host)
        address = draft.text(*old) or ""
        if address == "host-gateway":
            draft.say(Weight.NOTE, old, "is not needed: the agent runs on this machine itself")
            continue
        draft.say(Weight.DECIDE, old, f"is the machine's business now; add to /etc/hosts: {address} {host}")
