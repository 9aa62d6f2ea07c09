"""Every way a run can go wrong, each told to the researcher; the tasks wait already when the agent comes up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import docker
import pytest

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask
from tests.lab.agents import AgentProcess
from tests.lab.images import script_image
from tests.lab.registry import registry

pytestmark = pytest.mark.interop

SCRIPTS = {
    "crash": "print('about to divide'); 1 / 0",
    "exit code": "sys.exit(3)",
    "no output": "pass",
    "deleted output": "os.remove(env('OUTPUT_FILE'))",
    "link to a secret": "os.remove(env('OUTPUT_FILE')); os.symlink('/etc/shadow', env('OUTPUT_FILE'))",
    "folder as output": "os.remove(env('OUTPUT_FILE')); os.mkdir(env('OUTPUT_FILE'))",
    "pipe as output": "os.remove(env('OUTPUT_FILE')); os.mkfifo(env('OUTPUT_FILE'))",
    "too large output": "open(env('OUTPUT_FILE'), 'wb').write(b'x' * 300_000)",
    "full disk": """
        for number in range(40):
            open(f'/mnt/tmp/{number}', 'wb').write(b'x' * 200_000)
        time.sleep(300)
    """,
    "locked folder": """
        os.makedirs('/mnt/data/a/b'); os.chmod('/mnt/data/a', 0); write('locked')
    """,
    "out of memory": """
        hoard = []
        while True:
            hoard.append(bytearray(1 << 20))
    """,
    "fork bomb": """
        import signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(200):
            if os.fork() == 0:
                time.sleep(3); os._exit(0)
    """,
    "endless": "print('here we go'); time.sleep(300)",
    "not UTF-8": "sys.stdout.buffer.write(b'caf\\xe9 \\xff\\x00 end\\n'); write(1)",
    "endless log": """
        print('FIRST LINE')
        for number in range(20_000):
            sys.stdout.write('x' * 1000 + '\\n')
        print('LAST LINE'); write(1)
    """,
    "fine": "write({'fine': True})",
}


@dataclass(frozen=True)
class Troubles:
    tasks: dict[str, SubmittedTask]
    agent: AgentProcess

    def __getitem__(self, name: str) -> dict[str, str]:
        return self.tasks[name].ended(within=90)


@pytest.fixture(scope="module")
def troubles(real: Stage) -> Iterator[Troubles]:
    with registry() as images:
        settings = {
            "limits": SMALL_LIMITS | {"run_time": "20s", "concurrent_runs": 6},
            "policy": {"algorithms": ["node-agent-lab/*", f"{images.host}/*", "127.0.0.1:1/*"]},
        }
        tasks = {name: real.submit(script) for name, script in SCRIPTS.items()}
        tasks |= other_troubles(real, images.host)
        agent = real.agent(settings=settings)
        try:
            agent.launch()
            yield Troubles(tasks, agent)
        finally:
            agent.stop()
            agent.clean_up()


def other_troubles(real: Stage, registry_host: str) -> dict[str, SubmittedTask]:
    tasks = {
        "missing image": real.submit(image=f"{registry_host}/lab/nothing:1"),
        "silent registry": real.submit(image="127.0.0.1:1/lab/nothing:1"),
        "denied": real.submit(image="elsewhere.example/evil:1"),
        "broken entrypoint": real.submit(image=broken_image(real.docker)),
        "unknown database": real.submit(databases=("nowhere",)),
        "not JSON": real.submit_raw(b"hello, algorithm"),
        "not base64": real.submit("write(1)"),
        "no input": real.submit("write(1)"),
        "nonsense parameters": real.submit("write(1)", databases=("default",)),
        "nonsense image": real.submit("write(1)"),
        "failed elsewhere": failed_elsewhere(real),
    }
    real.falsify("UPDATE run SET input = '%%% what?' WHERE task_id = ?", tasks["not base64"].id)
    real.falsify("UPDATE run SET input = NULL WHERE task_id = ?", tasks["no input"].id)
    real.falsify(
        "UPDATE taskdatabase SET parameters = '{nope' WHERE task_id = ?", tasks["nonsense parameters"].id
    )
    real.falsify("UPDATE task SET image = ' \n;rm -rf /' WHERE id = ?", tasks["nonsense image"].id)
    return tasks


def failed_elsewhere(real: Stage) -> SubmittedTask:
    """A task for two organizations, the other of which has failed already."""
    ids = [real.server.organization_ids[name] for name in ("alpha", "beta")]
    task = real.client.create_task(
        image=real.script,
        method="script",
        arguments={"script": "write(1)"},
        organizations=ids,
        databases=[],
    )
    real.falsify(
        "UPDATE run SET status = 'crashed', started_at = assigned_at, finished_at = assigned_at"
        " WHERE task_id = ? AND organization_id = ?",
        task,
        ids[1],
    )
    return SubmittedTask(task, real.client, organization_id=ids[0])


def broken_image(client: docker.DockerClient) -> str:
    """An image whose program does not exist."""
    image = client.images.get(script_image(client, "whole", "pass"))
    container = client.containers.create(image)
    try:
        container.commit("node-agent-lab/broken", "latest", conf={"Entrypoint": ["/no/such/program"]})
    finally:
        container.remove()
    return "node-agent-lab/broken:latest"


ENDINGS = {
    "crash": ("crashed", ["about to divide", "ZeroDivisionError", "exit code 1"]),
    "exit code": ("crashed", ["exit code 3"]),
    "no output": ("completed", ["wrote no output"]),
    "deleted output": ("completed", ["wrote no output"]),
    "link to a secret": ("completed", ["wrote no output"]),
    "folder as output": ("completed", ["wrote no output"]),
    "pipe as output": ("completed", ["wrote no output"]),
    "too large output": ("crashed", ["File too large", "limits.output_size"]),
    "full disk": ("failed", ["of disk", "limits.tmp_size"]),
    "locked folder": ("completed", []),
    "out of memory": ("crashed", ["ran out of memory", "limits.memory"]),
    "fork bomb": ("crashed", ["BlockingIOError", "limits.pids"]),
    "endless": ("failed", ["here we go", "stopped after", "limits.run_time"]),
    "not UTF-8": ("completed", ["caf", "end"]),
    "missing image": ("non-existing Docker image", ["lab/nothing:1", "Is the name right"]),
    "silent registry": ("non-existing Docker image", ["registry", "does not answer", "kept asking"]),
    "denied": ("not allowed", ["does not allow the image elsewhere.example/evil:1"]),
    "broken entrypoint": ("start failed", ["/no/such/program"]),
    "unknown database": ("failed", ["nowhere"]),
    "not base64": ("failed", ["base64"]),
    "no input": ("failed", ["input"]),
    "nonsense parameters": ("failed", ["default", "not JSON"]),
    "nonsense image": ("failed", ["image"]),
    "failed elsewhere": ("failed", ["the task is over", "failed elsewhere"]),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_run_that_goes_wrong_ends_with_the_right_word_and_a_log_that_explains(
    troubles: Troubles, name: str
) -> None:
    status, told = ENDINGS[name]
    run = troubles[name]
    print(f"\n--- {name}: {run['status']}\n{(run['log'] or '')[-500:]}")
    assert run["status"] == status
    assert run["finished_at"]
    assert run["started_at"]
    for words in told:
        assert words in (run["log"] or "")


@pytest.mark.parametrize("name", ["link to a secret", "folder as output", "pipe as output", "deleted output"])
def test_what_is_no_ordinary_file_is_never_sent_as_a_result(troubles: Troubles, name: str) -> None:
    assert troubles[name]["finished_at"]
    assert troubles.tasks[name].raw_result() == ""


def test_an_input_that_is_not_json_reaches_the_algorithm_byte_for_byte(troubles: Troubles) -> None:
    assert troubles["not JSON"]["status"] == "completed"
    assert troubles.tasks["not JSON"].raw_result() == "hello, algorithm"


def test_a_long_log_keeps_its_beginning_and_its_end_and_marks_the_cut(troubles: Troubles) -> None:
    run = troubles["endless log"]
    print(len(run["log"]), [line[:80] for line in run["log"].splitlines() if not line.startswith("xxx")])
    assert run["status"] == "completed"
    assert run["log"].startswith("FIRST LINE")
    assert "LAST LINE" in run["log"][-200:]
    assert "cut" in run["log"] or "left out" in run["log"]
    assert len(run["log"]) < 80 * 1024


def test_the_agent_goes_on_and_nothing_is_left(
    real: Stage, troubles: Troubles, leaves_nothing: Callable[[AgentProcess], None]
) -> None:
    for name in troubles.tasks:
        assert troubles[name]["status"] not in {"pending", "active", "initializing"}
    assert troubles.tasks["fine"].result() == {"fine": True}
    assert real.submit("write('again')").result() == "again"
    leaves_nothing(troubles.agent)
