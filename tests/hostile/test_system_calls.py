"""An algorithm that makes system calls no analysis needs, and an ordinary program that must not notice the filter."""

import errno
import json
from typing import Any

import pytest

from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.firewall import FirewallFacts
from node_agent.runtime.probe import Check, ProbePlan, probe_isolation
from node_agent.runtime.spec import EngineTraits
from tests.integration.machine import LIMITS, USER, Machine

pytestmark = pytest.mark.engine

CALLS = """
import ctypes, errno, json, os, socket

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return 0 if libc.syscall(ctypes.c_long(number), *longs) != -1 else ctypes.get_errno()

def made(*arguments):
    try:
        socket.socket(*arguments).close()
        return 0
    except OSError as error:
        return error.errno

events = ctypes.c_ulong()
ring = ctypes.create_string_buffer(240)
answers = {
    'io_setup': call(206, 128, ctypes.byref(events)),
    'io_uring_setup': call(425, 4, ring),
    'keyctl': call(250, 0, -3, 1),
    'add_key': call(248, b'user', b'name', b'secret', 6, -3),
    'request_key': call(249, b'user', b'name', None, -3),
    'userfaultfd': call(323, 1),
    'bpf': call(321, 0, ring, 72),
    'perf_event_open': call(298, ring, 0, -1, -1, 0),
    'unshare user': call(272, 0x10000000),
    'mount': call(165, b'none', b'/tmp', b'tmpfs', 0, None),
    'open_by_handle_at': call(304, -100, ring, 0),
    'kexec_load': call(246, 0, 0, None, 0),
    'modify_ldt': call(154, 0, ring, 16),
    'clone3': call(435, None, 0),
    'clone in a namespace of its own': call(56, 0x10000011, 0, 0, 0, 0),
    'AF_ALG': made(38, socket.SOCK_SEQPACKET),
    'AF_VSOCK': made(40, socket.SOCK_STREAM),
    'AF_PACKET': made(17, socket.SOCK_RAW),
    'AF_KEY': made(15, socket.SOCK_RAW, 2),
    'AF_TIPC': made(30, socket.SOCK_STREAM),
    'NETLINK_CRYPTO': made(16, socket.SOCK_RAW, 21),
    'AF_INET': made(socket.AF_INET, socket.SOCK_STREAM),
    'AF_INET6': made(socket.AF_INET6, socket.SOCK_STREAM),
    'AF_UNIX': made(socket.AF_UNIX, socket.SOCK_DGRAM),
    'NETLINK_ROUTE': made(16, socket.SOCK_RAW, 0),
}
print(json.dumps(answers))
"""

NOT_THERE = {"io_uring_setup", "clone3"}
OPEN = {"AF_INET", "AF_INET6", "AF_UNIX", "NETLINK_ROUTE"}

OTHER_WORD_LENGTH = """
import ctypes, json, mmap, os
# push rbx; mov eax,359 (socket); mov ebx,38 (AF_ALG); mov ecx,5; xor edx,edx; int 0x80; pop rbx; ret
code = bytes.fromhex('53b867010000bb26000000b90500000031d2cd805bc3')
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
child = os.fork()
if child == 0:
    os._exit(1 if function() >= 0 else 2)
_, status = os.waitpid(child, 0)
print(json.dumps(status))
"""

ORDINARY = """
import asyncio, concurrent.futures, json, multiprocessing, os, socket, subprocess, sys, tempfile, threading, time

def square(number):
    return number * number

def main():
    seen = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start()
    thread.join()
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool:
        squares = list(pool.map(square, range(4)))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(time.sleep, [0.01] * 8))
    child = subprocess.run([sys.executable, '-S', '-c', 'print(5)'], capture_output=True, text=True).stdout.strip()

    async def talk():
        answered = asyncio.Event()
        async def answer(reader, writer):
            writer.write(await reader.read(4))
            await writer.drain()
            writer.close()
        server = await asyncio.start_server(answer, '127.0.0.1', 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b'ping')
        answer = await reader.read(4)
        writer.close()
        server.close()
        return answer.decode()

    with tempfile.TemporaryFile() as file:
        file.write(b'x' * 100_000)
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    queue = multiprocessing.get_context('fork').Queue()
    other = multiprocessing.get_context('fork').Process(target=queue.put, args=('from another process',))
    other.start()
    received = queue.get(timeout=10)
    other.join()
    names = sorted(name for _, name in socket.if_nameindex())
    proxy = socket.gethostbyname('proxyserver')
    print(json.dumps([seen, squares, child, asyncio.run(talk()), received, 'lo' in names, proxy != '']))

if __name__ == '__main__':
    main()
"""


def test_system_calls_that_no_analysis_needs_are_refused(place: Machine) -> None:
    answers = place.answer(1, CALLS)
    assert {name: errno.errorcode.get(error, error) for name, error in answers.items()} == {
        name: 0 if name in OPEN else "ENOSYS" if name in NOT_THERE else "EPERM" for name in answers
    }


def test_calls_of_32_bit_programs_which_have_other_numbers_end_the_program(place: Machine) -> None:
    """The same call by the gate for 32-bit programs, where a filter for 64-bit programs does not look."""
    assert place.answer(1, OTHER_WORD_LENGTH) & 0x7F in {9, 31}


def test_an_ordinary_program_with_threads_processes_and_sockets_notices_nothing(place: Machine) -> None:
    written = f"open('/tmp/main.py', 'w').write({ORDINARY!r})"
    script = f"import os, sys; {written}; os.execv(sys.executable, ['python3', '/tmp/main.py'])"
    answer: Any = place.answer(1, script)
    assert answer == [[1], [0, 1, 4, 9], "5", "ping", "from another process", True, True]


def test_an_image_with_a_right_gets_the_calls_that_belong_to_it_and_no_others(place: Machine) -> None:
    """What hardening.relax gives works: a packet socket with NET_RAW, and still no AF_ALG."""
    script = CALLS.replace(
        "print(json.dumps(answers))", "print(json.dumps([answers['AF_PACKET'], answers['AF_ALG']]))"
    )
    root = {"user": (0, 0), "capabilities": ("NET_RAW",)}
    assert place.answer(1, script, **root) == [0, errno.EPERM], json.dumps(root)


class Unfiltered(DockerEngine):
    """An engine under which our profile is not applied, as when its owner took it away."""

    _traits = EngineTraits(seccomp="")


def test_the_probe_finds_an_engine_that_does_not_apply_the_profile(place: Machine) -> None:
    engine = Unfiltered(place.name, place.connection, place.network)
    plan = ProbePlan(
        agent=place.name,
        user=USER,
        groups=(),
        limits=LIMITS,
        proxy_port=None,
        firewall=FirewallFacts(loaded=False),
        addresses=(),
    )
    found = probe_isolation(place.connection, engine, place.facts, plan).findings
    (text,) = [finding.text for finding in found if finding.check is Check.HARDENING]
    # newer engines refuse io_uring and vsock by themselves
    assert "io_setup" in text
