"""Encrypted collaborations: messages the real client's code reads and writes, and whole tasks of two organizations."""

import base64
import contextlib
import hashlib
import json
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests

from node_agent.payload.envelope import seal, seal_blob, unseal, unseal_blob
from node_agent.payload.keys import PrivateKey, create_private_key
from tests.interop.stage import MIB, Stage, SubmittedTask, eventually
from tests.lab.agents import AgentProcess
from tests.lab.client import ClientWorker
from tests.lab.samples import write_hospitals
from tests.lab.vantage6 import RealServer
from tests.lab.venvs import client_venv, environment

pytestmark = pytest.mark.interop

ORGANIZATIONS = ("alpha", "beta")
RESULT_SIZE = 200 * MIB
ABOVE_IDLE = 60 * MIB


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One private key for each organization, as its node and its user share it."""
    folder = tmp_path_factory.mktemp("keys")
    files = {name: folder / f"{name}.pem" for name in ORGANIZATIONS}
    for file in files.values():
        create_private_key(file)
    return files


# --- messages -------------------------------------------------------------------------------------------------

MESSAGES = [
    b"",
    b"{}",
    '{"method": "Größe 日本 🎉"}'.encode(),
    b'"' + b"x" * 100_000 + b'"',
    b"\x00\xff\xfe binary",
    bytes(range(256)) * 300 + b"!",
    b"no JSON at all",
]
REAL_CODE = """\
import base64, io, json, sys
from pathlib import Path
from vantage6.common.encryption import RSACryptor

asked = json.load(sys.stdin)
messages, texts, blobs = ([base64.b64decode(item) for item in asked[kind]] for kind in ("messages", "texts", "blobs"))
cryptor = RSACryptor(Path(asked["key"]))

def read(text):
    # its own steps, without the last one, which takes apart what is not JSON
    block, start, content = (cryptor.str_to_bytes(part) for part in cryptor._parse_header(text))
    return cryptor._aes_ctr_decrypt(content, cryptor._decode_shared_key(block), start)

def is_json(message):
    try:
        return json.loads(message) is not None
    except ValueError:
        return not message

def shown(items):
    return [base64.b64encode(item).decode() for item in items]

read_whole = [cryptor.decrypt(text.decode()) for text, message in zip(texts, messages) if is_json(message)]
assert read_whole == [message for message in messages if is_json(message)]
json.dump({
    "public_key": cryptor.public_key_str,
    "texts": shown(cryptor.encrypt_bytes_to_str(message, asked["reader"]).encode() for message in messages),
    "blobs": shown(b"".join(cryptor.encrypt_stream(io.BytesIO(message), asked["reader"])) for message in messages),
    "read_texts": shown(read(text.decode()) for text in texts),
    "read_blobs": shown(b"".join(cryptor.decrypt_stream(io.BytesIO(blob))) for blob in blobs),
}, sys.stdout)
"""


def test_the_real_client_reads_what_we_write_and_we_read_what_it_writes(keys: dict[str, Path]) -> None:
    theirs, ours = PrivateKey.load(keys["alpha"]), PrivateKey.load(keys["beta"])
    texts = [b"".join(seal([message], theirs.public)) for message in MESSAGES]
    blobs = [b"".join(seal_blob([message], theirs.public)) for message in MESSAGES]
    found = real_code(
        {
            "key": str(keys["alpha"]),
            "reader": ours.public.wire,
            "messages": shown(MESSAGES),
            "texts": shown(texts),
            "blobs": shown(blobs),
        }
    )
    assert found["public_key"] == theirs.public.wire
    assert found["read_texts"] == found["read_blobs"] == shown(MESSAGES)
    assert [b"".join(unseal([base64.b64decode(text)], ours)) for text in found["texts"]] == MESSAGES
    assert [b"".join(unseal_blob([base64.b64decode(blob)], ours)) for blob in found["blobs"]] == MESSAGES


def shown(items: list[bytes]) -> list[str]:
    return [base64.b64encode(item).decode() for item in items]


def real_code(asked: Mapping[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [str(client_venv()), "-P", "-c", REAL_CODE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- a collaboration of two organizations ---------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """An encrypted collaboration: server, one agent and one researcher for each organization."""

    server: RealServer
    agents: Mapping[str, AgentProcess]
    clients: Mapping[str, ClientWorker]
    script: str
    average: str


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = write_hospitals(tmp_path_factory.mktemp("hospitals"))
    return {name: found[name] for name in ORGANIZATIONS}


@pytest.fixture(scope="module")
def sealed(real: Stage, keys: dict[str, Path], hospitals: dict[str, Path]) -> Iterator[Sealed]:
    with ExitStack() as stack:
        server = stack.enter_context(RealServer(ORGANIZATIONS, encrypted=True))
        agents = {name: agent(server, name, keys[name], hospitals[name]) for name in ORGANIZATIONS}
        for one in agents.values():
            stack.callback(one.clean_up)
            one.launch()
            stack.callback(one.stop)
        for one in agents.values():
            one.wait_until_ready()
        clients = {
            name: stack.enter_context(ClientWorker(server, name, private_key=keys[name]))
            for name in ORGANIZATIONS
        }
        yield Sealed(server, agents, clients, real.script, real.average)


def agent(server: RealServer, name: str, key: Path, database: Path) -> AgentProcess:
    return AgentProcess(
        server_url=server.url,
        api_key=server.api_keys[name],
        databases={"default": database},
        settings={
            "encryption": {"private_key": str(key)},
            "limits": {"concurrent_runs": 3, "memory": "768MiB", "output_size": "256MiB", "run_time": "5m"},
        },
    )


def test_the_public_keys_were_uploaded_at_the_start(sealed: Sealed, keys: dict[str, Path]) -> None:
    for name, client in sealed.clients.items():
        found = client.call("organization.get", id_=sealed.server.organization_ids[name])
        public = PrivateKey.load(keys[name]).public
        assert found["public_key"] == public.wire
        assert (
            sealed.agents[name].wait_for("public_key_uploaded", within=1)["fingerprint"] == public.fingerprint
        )
    assert sealed.agents["alpha"].command("check").returncode == 0


def test_both_organizations_get_partial_and_central_averages(
    sealed: Sealed, hospitals: dict[str, Path]
) -> None:
    tables = {name: pd.read_csv(path) for name, path in hospitals.items()}
    sums = sorted(table["weight"].sum() for table in tables.values())
    ages = pd.concat(list(tables.values()))["age"]
    asked = [
        (client, ask_partial(sealed, name), ask_central(sealed, name))
        for name, client in sealed.clients.items()
    ]
    for client, partial, central in asked:
        parts = client.results(partial, within=120)
        assert sorted(part["sum"] for part in parts) == pytest.approx(sums)
        (answer,) = client.results(central, within=120)
        assert (answer["average"], answer["count"]) == (pytest.approx(ages.mean()), ages.count())
    texts = [text for row in kept_by_server(sealed, "result != ''") for text in row]
    # two tasks of two runs, two of one, and the two subtasks of these with two runs each
    assert len(texts) >= 2 * (4 + 2 + 4)
    assert {tuple(map(len, text.split("$")[:2])) for text in texts} == {(684, 24)}


def kept_by_server(sealed: Sealed, condition: str, *values: int) -> list[tuple[str, str]]:
    """Give inputs and results as they lie in the server's database."""
    with contextlib.closing(sqlite3.connect(sealed.server.log.with_name("database.sqlite"))) as database:
        query = f"SELECT input, result FROM run WHERE {condition}"  # noqa: S608 - conditions are our own
        return database.execute(query, values).fetchall()


def ask_partial(sealed: Sealed, asking: str) -> int:
    return sealed.clients[asking].create_task(
        image=sealed.average, method="partial_average", arguments={"column": "weight"}
    )


def ask_central(sealed: Sealed, asking: str) -> int:
    ids = sealed.server.organization_ids
    return sealed.clients[asking].create_task(
        image=sealed.average,
        method="central_average",
        arguments={"column": "age", "organizations": list(ids.values())},
        organizations=[ids[asking]],
    )


def test_an_input_for_another_key_fails_with_a_text_that_helps(sealed: Sealed, keys: dict[str, Path]) -> None:
    task = submit(sealed, b"{}", PrivateKey.load(keys["beta"]))
    run = task.reached("failed")
    assert "another key" in run["log"]
    assert PrivateKey.load(keys["alpha"]).public.fingerprint in run["log"]


WAITS_FOR_LEAVE = """
while not os.path.exists("/mnt/tmp/leave"):
    time.sleep(0.1)
write("the " + "answer")
"""


def test_what_is_owed_while_the_server_is_away_lies_sealed_and_arrives_as_it_lay(
    sealed: Sealed, keys: dict[str, Path]
) -> None:
    key, agent = PrivateKey.load(keys["alpha"]), sealed.agents["alpha"]
    task = submit(
        sealed, json.dumps({"method": "script", "kwargs": {"script": WAITS_FOR_LEAVE}}).encode(), key
    )
    run_id = task.reached("active")["id"]
    folder = agent.state_dir / "runs" / f"{run_id:09d}"
    sealed.server.stop()
    try:
        for job in (agent.state_dir / "jobs").iterdir():
            (job / "leave").touch()
        agent.wait_for("run_advanced", within=120, run_id=run_id, to="finished")
        owed = (folder / "result.sealed").read_bytes()
        left = sorted(file.name for file in folder.glob("result*"))
    finally:
        sealed.server.start()
    assert left == ["result.sealed"]
    assert b"".join(unseal([owed], key)) == b'"the answer"'
    eventually(lambda: status_of(sealed, task.id) == "completed", within=120, what="the end of the task")
    ((_, result),) = kept_by_server(sealed, "task_id = ?", task.id)
    assert result.encode() == owed


WRITES_MUCH = """
piece = bytes(range(256)) * 4096
with open(env("OUTPUT_FILE"), "wb") as output:
    for number in range(SIZE // len(piece)):
        output.write(number.to_bytes(8, "big") + piece[8:])
""".replace("SIZE", str(RESULT_SIZE))


def test_a_large_input_and_a_large_result_take_little_memory(sealed: Sealed, keys: dict[str, Path]) -> None:
    process = Path("/proc") / str(sealed.agents["alpha"].pid)
    (process / "clear_refs").write_text("5")  # forgets the peak so far
    idle = memory(process, "VmRSS")
    content = {"method": "script", "kwargs": {"script": WRITES_MUCH, "padding": "x" * (10 * MIB)}}
    task = submit(sealed, json.dumps(content).encode(), PrivateKey.load(keys["alpha"]))
    # asked without the run, which would bring its input each time
    eventually(lambda: status_of(sealed, task.id) == "completed", within=150, what="the end of the task")
    above = memory(process, "VmHWM") - idle
    assert above <= ABOVE_IDLE, f"{above / MIB:.0f} MiB above idle"
    ((_, result),) = kept_by_server(sealed, "task_id = ?", task.id)
    assert digest(unseal([result.encode()], PrivateKey.load(keys["alpha"]))) == digest(what_is_written())


def status_of(sealed: Sealed, task_id: int) -> str:
    return str(sealed.clients["alpha"].call("task.get", id_=task_id)["status"])


def memory(process: Path, field: str) -> int:
    (line,) = (line for line in (process / "status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def submit(sealed: Sealed, message: bytes, key: PrivateKey) -> SubmittedTask:
    """Send alpha's node a message for whatever key; the real client would look the key up."""
    server, client = sealed.server, sealed.clients["alpha"]
    login = {"username": "alpha", "password": server.passwords["alpha"]}
    token = requests.post(f"{server.url}/token/user", json=login, timeout=30).json()["access_token"]
    text = b"".join(seal([message], key.public)).decode()
    body = {
        "name": "sealed by hand",
        "image": sealed.script,
        "collaboration_id": server.collaboration_id,
        "organizations": [{"id": server.organization_ids["alpha"], "input": text}],
        "databases": [],
    }
    answer = requests.post(
        f"{server.url}/task", headers={"Authorization": f"Bearer {token}"}, json=body, timeout=120
    )
    assert answer.status_code == 201, answer.text[:500]
    return SubmittedTask(int(answer.json()["id"]), client)


def digest(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def what_is_written() -> Iterator[bytes]:
    piece = bytes(range(256)) * 4096
    return (number.to_bytes(8, "big") + piece[8:] for number in range(RESULT_SIZE // len(piece)))
