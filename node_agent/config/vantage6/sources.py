"""Databases and the ways to them: files, services, linked containers, tunnels, allowed addresses.

Owns what the old node's words for places mean here. Must not know how a place is reached.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_network, summarize_address_range
from pathlib import PurePosixPath
from typing import Final

from node_agent.config.document import Loc
from node_agent.config.vantage6.draft import Draft, Hidden, Value, Weight
from node_agent.domain.egress import parse_rule
from node_agent.domain.service import ServicePlace, service_place

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LOOKS_SECRET = re.compile(r"pass|pwd|secret|token|key|cred", re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_SQLITE = "sqlite:///"
_TYPE_OF_SUFFIX: Final = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".xls": "excel",
    ".xlsx": "excel",
    ".sqlite": "sqlite",
    ".db": "sqlite",
}
_FILES: Final = frozenset({"csv", "excel", "parquet", "sqlite", "folder"})
_HOST_KEY = re.compile(
    r"(?:(?:ssh|ecdsa|sk)-[a-z0-9@.\-]+ [A-Za-z0-9+/]{20,}=*|SHA256:[A-Za-z0-9+/]{43}=?)\Z"
)
_HOST_FROM_INSIDE = "host.docker.internal"
_MOST_WAYS_OUT = 500


def looks_secret(name: str) -> bool:
    """Tell whether the name of a variable says that its value is a secret."""
    return _LOOKS_SECRET.search(name) is not None


# --- databases -------------------------------------------------------------------------------------------------


def carry_databases(draft: Draft) -> None:
    """Carry the databases over, whether they stand in a list or, as in version 3, by their label."""
    if isinstance(draft.old.at("databases"), dict):
        for label in draft.entries("databases"):
            _labelled(draft, label)
    else:
        for old in draft.blocks("databases"):
            _database(draft, old, draft.text(*old, "label"), old)
    if not draft.count("databases"):
        draft.say(Weight.DECIDE, ("databases",), "are missing: runs that ask for data will fail")


def _labelled(draft: Draft, label: str) -> None:
    old: Loc = ("databases", label)
    if isinstance(draft.old.at(*old), dict):
        _database(draft, old, label, old)
        return
    uri = draft.text(*old)
    if uri is not None:
        here = _next(draft, "databases")
        _place(draft, here, label, uri, _guessed_type(uri))
        draft.say(
            Weight.MUST if _guessed_type(uri) == "other" else Weight.CHANGED,
            old,
            "named no type; it is guessed from the address: check it",
            here=(*here, "type"),
        )


def _guessed_type(uri: str) -> str:
    if "://" in uri:
        return "sparql" if uri.startswith("http") else "sql"
    return _TYPE_OF_SUFFIX.get(PurePosixPath(uri).suffix.lower(), "other")


def _database(draft: Draft, old: Loc, label: str | None, place: Loc) -> None:
    uri, kind = draft.text(*place, "uri"), (draft.text(*place, "type") or "").lower()
    if not label or not uri:
        draft.say(Weight.MUST, old, "has no label or no uri; it is left out")
        return
    here = _next(draft, "databases")
    kind, uri = _sqlite(draft, place, here, kind=kind or "csv", uri=uri)
    _place(draft, here, label, uri, kind)
    if not draft.old.at(*place, "type"):
        draft.say(Weight.MUST, (*place, "type"), "is missing; check it", here=(*here, "type"))
    _mount(draft, place, here, kind)
    _parameters(draft, place, here)


def _place(draft: Draft, here: Loc, label: str, uri: str, kind: str) -> None:
    draft.put((*here, "label"), label)
    draft.put((*here, "type"), kind)
    draft.put((*here, "uri"), Hidden(uri) if _holds_secret(uri) else uri)
    if kind in _FILES and not uri.startswith("/"):
        windows = _WINDOWS.match(uri) is not None
        draft.remark(
            (*here, "uri"),
            "a path of Windows; the agent runs on Linux: write the path as this machine has it"
            if windows
            else "not an absolute path: write the whole path",
        )


def _holds_secret(uri: str) -> bool:
    if "://" not in uri:
        return False
    return "@" in uri or looks_secret(uri)


def _sqlite(draft: Draft, old: Loc, here: Loc, *, kind: str, uri: str) -> tuple[str, str]:
    """Tell an SQLite file from a service, since the type of both was `sql`."""
    path = f"/{uri.removeprefix(_SQLITE).lstrip('/')}" if uri.startswith(f"{_SQLITE}/") else uri
    if kind != "sql" or "://" in path:
        return kind, uri
    draft.say(Weight.NOTE, (*old, "type"), "is sqlite here; algorithms still see sql", here=(*here, "type"))
    return "sqlite", path


def _mount(draft: Draft, old: Loc, here: Loc, kind: str) -> None:
    mode = draft.text(*old, "mount_mode")
    if kind == "folder" and mode != "ro":
        text = "was mounted for writing; here a folder is read-only: an algorithm that writes into it fails"
        draft.say(Weight.CHANGED, (*old, "mount_mode") if mode else old, text, here=(*here, "uri"))
    elif mode == "copy" or (mode is None and kind in _FILES):
        text = "was copied once at the start of the node; here runs read the file itself, as it is at that moment"
        draft.say(Weight.NOTE, (*old, "mount_mode") if mode else old, text, here=(*here, "uri"))
    elif mode:
        draft.say(Weight.NOTE, (*old, "mount_mode"), "is how it always is here", here=(*here, "uri"))


def _parameters(draft: Draft, old: Loc, here: Loc) -> None:
    for name in draft.entries(*old, "env"):
        put_variable(draft, (*old, "env", name), (*here, "env", name))
    if draft.entries(*old, "env"):
        draft.say(
            Weight.NOTE,
            (*old, "env"),
            "was given to every run; here only to runs that ask for this database",
            here=(*here, "env"),
        )


def put_variable(draft: Draft, old: Loc, here: Loc) -> None:
    """Carry one variable over; a value that looks like a secret is never shown."""
    name, value = str(old[-1]), draft.text(*old)
    if value is None:
        return
    if not _IDENTIFIER.match(name):
        draft.say(Weight.DECIDE, old, "is left out: its name is no identifier", here=here[:-1])
        return
    shown: Value = Hidden(value) if looks_secret(name) or _holds_secret(value) else value
    draft.put(here, shown)


def _next(draft: Draft, *block: str) -> Loc:
    return (*block, draft.count(*block))


# --- services --------------------------------------------------------------------------------------------------


def carry_linked_containers(draft: Draft) -> None:
    """Carry `docker_services` over."""
    for alias in draft.entries("docker_services"):
        old: Loc = ("docker_services", alias)
        container = draft.text(*old)
        if container is None:
            continue
        here = _next(draft, "services")
        _name_service(draft, old, here, alias)
        draft.put((*here, "container"), container)
        _say_how_reached(draft, old, here)


def _name_service(draft: Draft, old: Loc, here: Loc, alias: str) -> None:
    """Give a service its name; one that no host could have is changed, in the databases too."""
    name = alias.lower().replace("_", "-").strip("-")
    draft.put((*here, "name"), name)
    if name == alias:
        return
    draft.say(Weight.NOTE, old, f"was called {alias}, which is no name of a host", here=(*here, "name"))
    for loc, place in _services_of_databases(draft):
        if place.host == alias:
            uri = place.at(name, place.port)
            draft.put(loc, Hidden(uri) if isinstance(draft.values[loc], Hidden) else uri)


def _say_how_reached(draft: Draft, old: Loc, here: Loc) -> None:
    name = str(draft.values[(*here, "name")])
    if any(place.host == name for _, place in _services_of_databases(draft)):
        text = "is reached by runs that ask for the database that names it, at that port only"
        draft.say(Weight.CHANGED, old, text, here=here)
        return
    draft.say(
        Weight.DECIDE,
        old,
        "was open to every run; here a run reaches it through a database that names it, and none does: add one to "
        f"databases, for example {{label: my_label, type: other, uri: 'http://{name}:8080/'}}",
        here=here,
    )


def _services_of_databases(draft: Draft) -> list[tuple[Loc, ServicePlace]]:
    uris = [
        (loc, value.text if isinstance(value, Hidden) else str(value))
        for loc, value in draft.values.items()
        if loc[0] == "databases" and loc[-1] == "uri"
    ]
    return [(loc, place) for loc, uri in uris if (place := _place_in(uri)) is not None]


def _place_in(uri: str) -> ServicePlace | None:
    try:
        return service_place(uri)
    except ValueError:
        # our own check will say it
        return None


def carry_tunnels(draft: Draft) -> None:
    """Carry `ssh-tunnels` over."""
    for old in draft.blocks("ssh-tunnels"):
        name = draft.text(*old, "hostname")
        if not name:
            draft.say(Weight.MUST, old, "has no hostname; it is left out")
            continue
        here = _next(draft, "services")
        _name_service(draft, (*old, "hostname"), here, name)
        _tunnel(draft, old, (*here, "tunnel"))
        _say_how_reached(draft, old, here)


def _tunnel(draft: Draft, old: Loc, here: Loc) -> None:
    host = draft.text(*old, "ssh", "host") or ""
    draft.put((*here, "host"), "localhost" if host == _HOST_FROM_INSIDE else host)
    draft.put((*here, "port"), _number(draft.text(*old, "ssh", "port") or "22"))
    draft.put((*here, "user"), draft.text(*old, "ssh", "identity", "username") or "")
    draft.put((*here, "key_file"), draft.text(*old, "ssh", "identity", "key") or "")
    draft.say(
        Weight.NOTE,
        (*old, "ssh", "identity", "key"),
        "must be readable by the agent's user and by nobody else (chmod 600)",
        here=(*here, "key_file"),
    )
    _host_key(draft, (*old, "ssh", "fingerprint"), here, str(draft.values[(*here, "host")]))
    # some wrote the tunnel one level too deep, as an old example did
    inner = (*old, "tunnel") if draft.old.at(*old, "tunnel") is not None else (*old, "ssh", "tunnel")
    target = f"{draft.text(*inner, 'dest', 'ip') or ''}:{draft.text(*inner, 'dest', 'port') or ''}"
    draft.put((*here, "target"), target)


def _number(text: str) -> Value:
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else text


def _host_key(draft: Draft, old: Loc, here: Loc, host: str) -> None:
    # a line of known_hosts may end in a comment
    key = " ".join((draft.text(*old) or "").split()[:2])
    draft.put((*here, "host_key"), key)
    if not _HOST_KEY.match(key):
        draft.say(
            Weight.MUST,
            old,
            f"is no key of a machine: write the key itself, from `ssh-keyscan {host}`, after comparing its fingerprint "
            "with the one its owner gives you",
            here=(*here, "host_key"),
        )


# --- ways out --------------------------------------------------------------------------------------------------


def carry_whitelist(draft: Draft) -> None:
    """Name every host with every port: the old list allowed each port on each host."""
    if draft.old.at("whitelist") is None or not draft.entries("whitelist"):
        return
    ports = [text for _, text in draft.texts("whitelist", "ports")]
    rules = dict.fromkeys(_rules(draft, ports))
    for index, rule in enumerate(list(rules)[:_MOST_WAYS_OUT]):
        draft.put(("egress", "allow", index), rule)
    if len(rules) > _MOST_WAYS_OUT:
        text = f"stands for {len(rules)} ways out; only the first {_MOST_WAYS_OUT} are here"
        draft.say(Weight.DECIDE, ("whitelist",), text)
    if not rules:
        draft.say(
            Weight.DECIDE,
            ("whitelist",),
            "allowed nothing, or nothing that can be said here: no way out is open",
        )
        return
    draft.say(
        Weight.CHANGED,
        ("whitelist",),
        "meant every port on every host: strike out what is not needed; only these are reached, over HTTP and HTTPS, and "
        "not by an address an allowed name happens to have",
        here=("egress", "allow"),
    )


def _rules(draft: Draft, ports: list[str]) -> Iterator[str]:
    for key in ("domains", "ips"):
        for old, host in draft.texts("whitelist", key):
            names = list(_places_of(draft, old, host.strip()))
            yield from (rule for name in names for port in ports if (rule := _rule(draft, old, name, port)))


def _places_of(draft: Draft, old: Loc, host: str) -> Iterator[str]:
    if host in draft.entries("docker_services"):
        draft.say(Weight.NOTE, old, "is a linked container: it is reached as a service, without a way out")
    elif host == _HOST_FROM_INSIDE:
        draft.say(
            Weight.DECIDE,
            old,
            "is this machine: allow the address and port that is meant, or name it as a database",
        )
    elif old[1] == "domains" and host.startswith("."):
        yield host[1:]
        yield f"*{host}"
    elif old[1] == "domains":
        if "*" in host:
            draft.say(Weight.DECIDE, old, "is left out: the old node did not know `*` in a domain")
            return
        yield host
    else:
        yield from _networks(draft, old, host)


def _networks(draft: Draft, old: Loc, text: str) -> Iterator[str]:
    first, dash, last = text.partition("-")
    try:
        if dash:
            networks = list(summarize_address_range(IPv4Address(first), IPv4Address(last)))
            yield from (_short(str(network)) for network in networks)
            return
        yield _short(str(ip_network(text, strict=False)))
    except (ValueError, TypeError):
        draft.say(Weight.DECIDE, old, "is left out: it is no IPv4 address or network")


def _short(network: str) -> str:
    return network.removesuffix("/32")


def _rule(draft: Draft, old: Loc, name: str, port: str) -> str | None:
    rule = f"{name}:{port}"
    try:
        parse_rule(rule)
    except ValueError as error:
        draft.say(Weight.DECIDE, old, f"with port {port} is left out: it {error}")
        return None
    return rule
