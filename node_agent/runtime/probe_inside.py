"""What the probe does inside its container: look at everything a run could reach and use, and say what it found.

This text runs there by itself, on nothing but the standard library and without the rest of the package. It judges
nothing: what is right and wrong is decided by probe.py.
"""

import errno
import json
import os
import resource
import selectors
import socket
import sys
import time
from typing import Any

Asked = dict[str, Any]
Answers = dict[str, str]
Door = tuple[str, int]
Waiting = selectors.BaseSelector

LISTENER_SECONDS = 60
PATIENCE = 0.4
_CGROUPS = "/sys/fs/cgroup"
_CGROUP_FILES = {
    "memory": ("memory.max", "memory/memory.limit_in_bytes"),
    "pids": ("pids.max", "pids/pids.max"),
    "cpu": ("cpu.max", "cpu/cpu.cfs_quota_us"),
}
_CALLS_EVERYWHERE = {"io_uring_setup": 425, "clone3": 435}
_GENERIC_CALLS = {
    "io_setup": 0,
    "add_key": 217,
    "keyctl": 219,
    "userfaultfd": 282,
    "bpf": 280,
    "perf_event_open": 241,
}
_CALLS_OF_MACHINE = {
    "x86_64": {
        "io_setup": 206,
        "add_key": 248,
        "keyctl": 250,
        "userfaultfd": 323,
        "bpf": 321,
        "perf_event_open": 298,
    },
    "aarch64": _GENERIC_CALLS,
    "riscv64": _GENERIC_CALLS,
}
_FAMILIES = {"AF_ALG": (38, socket.SOCK_SEQPACKET), "AF_VSOCK": (40, socket.SOCK_STREAM)}
_WRONG_FLAGS = 0xFFFF_FFFF
_UNDER_WAY = frozenset({0, errno.EINPROGRESS})
_RESOURCES = {"open_files": resource.RLIMIT_NOFILE, "file_size": resource.RLIMIT_FSIZE}


def listen(asked: Asked) -> None:
    """Be a neighbour that listens on its own address."""
    with socket.create_server(("0.0.0.0", asked["port"])):  # noqa: S104 - of a container nobody may reach
        time.sleep(LISTENER_SECONDS)


def look(asked: Asked) -> dict[str, Any]:
    """Try everything that must be closed and read every limit."""
    answers = reach(asked)
    return {
        "reached": answers,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "status": status(),
        "limits": limits(),
        "calls": {**system_calls(), **socket_families()},
        "root_read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        "tmp_writable": os.access("/tmp", os.W_OK),  # noqa: S108 - the container's own
        "ipv6": has_ipv6(),
    }


def reach(asked: Asked) -> Answers:
    """Knock at all doors at once; give each door's answer within PATIENCE."""
    answers: Answers = {}
    with selectors.DefaultSelector() as waiting:
        for key, (address, port) in asked["tcp"].items():
            knock_tcp(waiting, answers, key, (address, port))
        for key, (address, port) in asked["udp"].items():
            send_udp(waiting, answers, key, (address, port), asked["token"].encode() + b" " + key.encode())
        for server in [*name_servers(), *asked["dns"]]:
            send_udp(waiting, answers, "dns " + server, (server, 53), dns_query(asked["name"]))
        collect(waiting, answers)
    return answers


def knock_tcp(waiting: Waiting, answers: Answers, key: str, door: Door) -> None:
    """Begin a connection."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    answers[key] = "closed"
    if sock.connect_ex(door) in _UNDER_WAY:
        waiting.register(sock, selectors.EVENT_WRITE, (key, tcp_answer, sock))
    else:
        # Without a way there, the kernel says so at once, and would not say it again.
        sock.close()


def send_udp(waiting: Waiting, answers: Answers, key: str, door: Door, payload: bytes) -> None:
    """Send a packet and be ready for an answer."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    answers[key] = "closed"
    try:
        sock.connect(door)
        sock.send(payload)
    except OSError:
        sock.close()
        return
    answer = dns_answer if key.startswith("dns ") else udp_answer
    waiting.register(sock, selectors.EVENT_READ, (key, answer, sock))


def collect(waiting: Waiting, answers: Answers) -> None:
    """Take in answers until all are there or patience ends."""
    deadline = time.monotonic() + PATIENCE
    while waiting.get_map() and time.monotonic() < deadline:
        for ready, _ in waiting.select(max(0, deadline - time.monotonic())):
            key, answer, sock = ready.data
            answers[key] = answer(sock)
            waiting.unregister(sock)
            sock.close()


def tcp_answer(sock: socket.socket) -> str:
    """Tell an accepted from a refused connection; both mean that somebody is there."""
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return {0: "open", 111: "refused"}.get(error, "closed")


def udp_answer(sock: socket.socket) -> str:
    """Tell an answer or a refusal from silence."""
    try:
        sock.recv(512)
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "closed"
    return "open"


def dns_answer(sock: socket.socket) -> str:
    """Tell whether a name server knew or denied the name; that it is out of service is as good as silence."""
    try:
        reply = sock.recv(512)
    except OSError:
        return "closed"
    return "open" if len(reply) > 3 and reply[3] & 0x0F in {0, 3} else "closed"  # noqa: PLR2004 - where DNS keeps its code


def dns_query(name: str) -> bytes:
    """Write the question for the address of *name*."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return b"\x2a\x2a\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00\x00\x01\x00\x01"


def name_servers() -> list[str]:
    """List the name servers this container was given."""
    lines = (line.split() for line in text("/etc/resolv.conf").splitlines())
    return [
        words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]
    ]


def status() -> dict[str, str]:
    """Read what the kernel says of this process."""
    lines = (line.partition(":") for line in text("/proc/self/status").splitlines())
    return {
        name: value.strip() for name, _, value in lines if name.startswith(("Cap", "NoNewPrivs", "Seccomp"))
    }


def has_ipv6() -> bool:
    """Tell whether an interface other than the loopback has an IPv6 address."""
    return any(line.split()[-1] != "lo" for line in text("/proc/net/if_inet6").splitlines())


def limits(root: str = _CGROUPS) -> dict[str, str]:
    """Read the limits this very process is under; empty where there is none."""
    found = {name: own_limit(root, paths) for name, paths in _CGROUP_FILES.items()}
    return found | {name: hard_limit(number) for name, number in _RESOURCES.items()}


def own_limit(root: str, paths: tuple[str, ...]) -> str:
    """Read the first of the cgroup files that is there and counts: it lies in the group that this process is in."""
    for path in paths:
        file = os.path.join(root, path)  # noqa: PTH118 - pathlib takes longer to import
        said = text(file).strip()
        members = text(os.path.join(os.path.dirname(file), "cgroup.procs")).split()  # noqa: PTH118, PTH120 - same
        if said and str(os.getpid()) in members:
            return said
    return ""


def hard_limit(number: int) -> str:
    """Read a limit of the process itself."""
    hard = resource.getrlimit(number)[1]
    return "" if hard == resource.RLIM_INFINITY else str(hard)


def system_calls() -> dict[str, int]:
    """Make system calls that the filter must refuse; return the error number of each, 0 for none.

    The arguments are wrong on purpose: where a call is not refused, the kernel finds fault with them and nothing is made.
    """
    try:
        import ctypes
    except ImportError:
        # What cannot be tried counts as not refused.
        return {"ctypes": 0}
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    wrong = ctypes.c_ulong(_WRONG_FLAGS)
    errors = {}
    for name, number in {**_CALLS_EVERYWHERE, **_CALLS_OF_MACHINE.get(os.uname().machine, {})}.items():
        refused = system_call(ctypes.c_long(number), wrong, None, wrong, None, None) == -1
        errors[name] = ctypes.get_errno() if refused else 0
    return errors


def socket_families() -> dict[str, int]:
    """Make sockets of families that no firewall rule knows; return the error number of each, 0 for none."""
    errors = {}
    for name, (family, kind) in _FAMILIES.items():
        try:
            socket.socket(family, kind).close()
            errors[name] = 0
        except OSError as error:
            errors[name] = error.errno or 0
    return errors


def text(path: str) -> str:
    """Read a file; one that is not there is empty."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib takes longer to import
            return file.read()
    except OSError:
        return ""


if __name__ == "__main__":
    asked = json.loads(os.environ["NODE_AGENT_PROBE"])
    json.dump({"listen": listen, "look": look}[asked["do"]](asked), sys.stdout)
