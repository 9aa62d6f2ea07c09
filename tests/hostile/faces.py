"""The hostile image: one program that shows the face its input names.

Owns the program. It runs in the image by itself, on a bare Python, and writes what it found as the result of the task.
"""

import docker

from tests.lab.images import script_image

PROGRAM = r"""
import base64, contextlib, ctypes, json, os, socket, struct, threading, time

def env(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()

OUTPUT, INPUT = env("OUTPUT_FILE"), env("INPUT_FILE")

def write(value):
    with open(OUTPUT, "w") as output:
        json.dump(value, output)

def files(*roots):
    for root in roots:
        for folder, _, names in os.walk(root):
            yield from (os.path.join(folder, name) for name in names)

def content(path, most=4096):
    try:
        # without waiting: what looks like a file may be a pipe
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return file.read(most) or b""
    except OSError:
        return b""

# --- another run's input ----------------------------------------------------------------------------------------

def neighbours():
    '''Read every task's input that can be seen from here but our own.'''
    own = os.path.dirname(INPUT)
    seen = [path for path in files("/mnt") if os.path.basename(path) in {"input", "token", "output"}]
    others = [path for path in seen if os.path.dirname(path) != own]
    write({"other runs' files": sorted(others), "inputs": [content(p).decode() for p in others if p.endswith("/input")]})

def wait(seconds, secret=""):
    '''Be somebody with a secret in the input, and stay.'''
    time.sleep(seconds)
    write({})

# --- everything one can leave and search for --------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
KEY = 0x4E41

def leave(secret, heard):
    for folder in ("/mnt/tmp", "/tmp", "/dev/shm"):
        with open(f"{folder}/left-behind", "w") as file:
            file.write(secret)
    segment = libc.shmget(KEY, 4096, 0o1666)
    if segment >= 0:
        ctypes.memmove(libc.shmat(segment, None, 0), secret.encode(), len(secret))
    queue = libc.msgget(KEY, 0o1666)
    libc.msgsnd(queue, struct.pack("=q", 1) + secret.encode(), len(secret), 0o4000)
    listen(socket.AF_UNIX, "\0crossing-" + secret, secret, heard)
    listen(socket.AF_INET, ("0.0.0.0", 5555), secret, heard)
    hearing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    hearing.bind(("0.0.0.0", 5556))
    with contextlib.suppress(OSError):
        hearing.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + bytes(4))
    threading.Thread(target=hear, args=(hearing, heard), daemon=True).start()

def listen(family, address, secret, heard):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen()
    def answer():
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1)
                heard.add(connection.recv(100).decode())
                connection.sendall(secret.encode())
    threading.Thread(target=answer, daemon=True).start()

def hear(hearing, heard):
    while True:
        heard.add(hearing.recv(100).decode())

def search(own, other, found):
    sought = other.encode()
    for path in files("/mnt", "/tmp", "/dev/shm", "/var/tmp"):
        # our own input names what is sought
        if path != INPUT and sought in content(path):
            found.add(path)
    for path in [f"/proc/{pid}/{name}" for pid in os.listdir("/proc") if pid.isdigit() for name in ("environ", "cmdline")]:
        if sought in content(path, 1 << 20):
            found.add(path)
    for number in range(64):
        address = libc.shmat(number, None, 0o10000)
        if address not in (None, ctypes.c_void_p(-1).value):
            if sought in ctypes.string_at(address, 100):
                found.add("SysV shared memory")
            libc.shmdt(ctypes.c_void_p(address))
    text = ctypes.create_string_buffer(200)
    got = libc.msgrcv(libc.msgget(KEY, 0o666), text, 100, 0, 0o4000)
    if got > 0 and sought in text.raw:
        found.add("SysV message queue")
    if ask(socket.AF_UNIX, "\0crossing-" + other, own):
        found.add("abstract socket")

def ask(family, address, own):
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        asking.settimeout(0.05)
        try:
            asking.connect(address)
            asking.sendall(own.encode())
            return asking.recv(100)
        except OSError:
            return b""

def call_around(own, gateway, mine, found):
    start = gateway.rpartition(".")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as calling:
        calling.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for address in [*(f"{start}.{n}" for n in range(2, 20)), f"{start}.255", "255.255.255.255", "224.0.0.251"]:
            if address != mine:
                with contextlib.suppress(OSError):
                    calling.sendto(own.encode(), (address, 5556))
    for address in (f"{start}.{n}" for n in range(2, 20)):
        if address != mine and ask(socket.AF_INET, (address, 5555), own):
            found.add(f"port of {address}")

def cross(own, other, seconds):
    '''Leave a secret everywhere, and look everywhere for another's, for a while.'''
    heard, found, rounds = set(), set(), 0
    gateway = socket.gethostbyname("proxyserver")
    mine = socket.gethostbyname(socket.gethostname())
    began = time.time()
    leave(own, heard)
    left = sum(own.encode() in content(path) for path in files("/mnt/tmp", "/tmp", "/dev/shm"))
    itself = left == 3 and ask(socket.AF_INET, (mine, 5555), "control") == own.encode()
    while time.time() < began + seconds:
        search(own, other, found)
        call_around(own, gateway, mine, found)
        rounds += 1
    heard -= {own, "control"}
    seen = {"found": sorted(found), "heard": sorted(heard), "finds itself": itself}
    write({**seen, "rounds": rounds, "from": began, "to": time.time()})

# --- outputs that are no ordinary files -------------------------------------------------------------------------

def output_link(target):
    os.symlink(target, OUTPUT)

def output_hard_link(target):
    os.link(target, OUTPUT)

def output_pipe():
    os.mkfifo(OUTPUT)

def output_socket():
    socket.socket(socket.AF_UNIX).bind(OUTPUT)

def output_device():
    with contextlib.suppress(OSError):
        os.mknod(OUTPUT, 0o60666, os.makedev(8, 0))

def output_folder():
    os.makedirs(OUTPUT + "/below")

def output_sparse(size):
    with contextlib.suppress(OSError), open(OUTPUT, "wb") as output:
        output.truncate(size)

def output_closed():
    write({"fine": True})
    os.chmod(OUTPUT, 0)

def output_deep(levels):
    os.chdir(os.path.dirname(OUTPUT))
    for _ in range(levels):
        os.mkdir("d")
        os.chdir("d")
        open("f", "w").close()
        os.chmod(".", 0o700)

def honest():
    write({"fine": True})

if os.path.lexists(OUTPUT) and os.path.getsize(OUTPUT) == 0:
    os.remove(OUTPUT)
arguments = json.loads(content(INPUT, 1 << 20))["kwargs"]
globals()[arguments.pop("face")](**arguments)
"""


def hostile_image(client: docker.DockerClient) -> str:
    """Return the hostile image."""
    return script_image(client, "hostile", PROGRAM)
