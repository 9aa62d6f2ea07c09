"""The arrows between the rooms of the package, read from its imports.

cli → app → the loop (agent, steps, …) → domain, errors; adapters → domain, errors, and never one another. How payloads are
written is shared by the two adapters they pass through.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "node_agent"
PACKAGE = "node_agent"

CORE = {"domain", "errors"}
LOOP = {
    "admission",
    "agent",
    "steps",
    "lister",
    "availability",
    "clocks",
    "company",
    "contracts",
    "diskuse",
    "earlytokens",
    "housekeeping",
    "inputs",
    "outbox",
    "parents",
    "quota",
    "timetable",
    "phases",
    "pool",
    "progress",
    "runlog",
    "runtable",
    "sealing",
    "stepports",
    "stuck",
    "sweep",
    "waiting",
}
PAYLOAD = {"payload"}
"""How inputs and results are written while they travel."""
PAYLOAD_USERS = {"server", "proxy"}
ADAPTERS = {"server", "runtime", "databases", "store", "proxy", "gates"}
EDGE = {"config", "journald", "logs", "service"}
"""What belongs to this process and this machine rather than to runs."""
TOP = {
    "app",
    "cli",
    "checks",
    "commands",
    "config_commands",
    "explaining",
    "encryption",
    "following",
    "imagechecks",
    "lean",
    "openings",
    "pruning",
    "options",
    "reloading",
    "screen",
    "site",
    "space",
    "spacewatch",
    "__main__",
}
APART = {"sandbox", "compute"}
"""Rooms of their own; they may use what stands above the adapters, and have libraries of their own."""

OWNERS = {
    "docker": {"runtime"},
    "requests": {"server", "runtime"},  # the engine's SDK lets errors of requests through
    "socketio": {"server"},
    "engineio": {"server"},
    "websocket": {"server"},
    "sqlite3": {"store", "databases/columns"},  # its own file, and the owner's
    "yaml": {"config"},
    "pydantic": {"config", "server/wire"},
    "pydantic_core": {"config"},
    "tenacity": {"server/client"},
    "cryptography": {"payload"},
    "werkzeug": {"proxy"},
    "waitress": {"proxy"},
    "pandas": {"databases"},
    "pyarrow": {"databases"},
    "openpyxl": {"databases"},
    "click": {"cli", "commands", "config_commands", "options", "screen"},
    "rich": {"cli", "commands", "screen"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports_of(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == PACKAGE}
    return names


def rooms_used(path: Path) -> set[str]:
    inner = (name.split(".") for name in imports_of(path.read_text()) if name.startswith(f"{PACKAGE}."))
    return {parts[1] for parts in inner if parts[1] != "__version__"} - {room_of(path)}


def packages_used(path: Path) -> set[str]:
    outer = {name.split(".")[0] for name in imports_of(path.read_text())}
    return outer - {PACKAGE, "__future__"}


def allowed_rooms(room: str) -> set[str]:
    if room in CORE:
        return CORE
    if room in LOOP:
        return CORE | LOOP
    if room in PAYLOAD_USERS:
        return CORE | PAYLOAD
    if room in PAYLOAD | ADAPTERS | EDGE:
        return CORE
    return CORE | PAYLOAD | LOOP | ADAPTERS | EDGE | TOP | APART


def in_rooms(rooms: set[str]) -> pytest.MarkDecorator:
    paths = [path for path in modules() if room_of(path) in rooms]
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


ORDERED = CORE | PAYLOAD | LOOP | ADAPTERS | EDGE
ALL_BUT_APART = ORDERED | TOP


def test_every_room_has_its_place() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert rooms <= CORE | PAYLOAD | LOOP | ADAPTERS | EDGE | TOP | APART


@in_rooms(ORDERED)
def test_arrows_point_inwards_only(path: Path) -> None:
    assert rooms_used(path) <= allowed_rooms(room_of(path))


@in_rooms(CORE)
def test_the_core_needs_nothing_but_python(path: Path) -> None:
    assert packages_used(path) <= set(sys.stdlib_module_names)


@in_rooms(LOOP)
def test_the_loop_needs_nothing_but_python_and_its_log(path: Path) -> None:
    assert packages_used(path) <= set(sys.stdlib_module_names) | {"structlog"}


IO_MODULES = {"socket", "subprocess", "threading", "urllib", "http", "shutil", "tempfile", "time", "os"}


@in_rooms({"domain"})
def test_the_domain_touches_neither_machine_nor_clock(path: Path) -> None:
    assert packages_used(path) & IO_MODULES == set()


@in_rooms(ALL_BUT_APART)
def test_each_library_has_its_owner(path: Path) -> None:
    inside = path.relative_to(ROOT).with_suffix("")
    places = {place.as_posix() for place in (inside, *inside.parents)}
    foreign = {name for name in packages_used(path) & OWNERS.keys() if not OWNERS[name] & places}
    assert foreign == set()


@in_rooms(CORE | (LOOP - {"pool", "earlytokens"}))
def test_the_loop_and_the_core_start_no_thread(path: Path) -> None:
    assert packages_used(path) & {"threading", "concurrent", "multiprocessing", "asyncio"} == set()


def test_the_rules_refuse_what_they_are_there_to_refuse() -> None:
    assert "server" not in allowed_rooms("runtime")
    assert "store" not in allowed_rooms("agent")
    assert "payload" not in allowed_rooms("store")
    assert "server" not in allowed_rooms("payload")
    assert "agent" not in allowed_rooms("domain")
    assert imports_of("from node_agent import steps\nimport docker.errors") == {
        "node_agent",
        "node_agent.steps",
        "docker.errors",
    }
