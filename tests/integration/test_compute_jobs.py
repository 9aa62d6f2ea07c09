"""Jobs of the compute API on a real node: how each of them ends, what it finds, what it leaves, and who waits for whom."""

import contextlib
import io
import itertools
import json
import socket
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import docker
import pytest

from node_agent.config.settings import IDS_UNDER_ROOT
from node_agent.domain.assets import short_did
from node_agent.domain.run import FIRST_JOB_RUN
from node_agent.sandbox.researcher import Order, Researcher
from tests.interop.stage import eventually
from tests.lab.consumer import Consumer, Container, Job, Refused, catalogued, raw_code
from tests.lab.job_site import JobSite, Offer, did_of, job_site
from tests.parts import engine_client
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

PATIENCE = 60.0
MIB = 1 << 20
MOST_WAITING = 20
RAW = {"raw_algorithms": True, "share_log": True}
TRUSTING = {"trusted_algorithms": [{"did": did_of("obedient")}]}
PATIENTS, VISITS, LOST, SHY, SCANS = map(did_of, ("patients", "visits", "lost", "shy", "scans"))
ROWS = "patient,age\na,41\nb,43\n"
MORE_ROWS = "visit\n1\n"
ENVIRONMENTS = (
    {"id": "roomy", "memory": "64MiB", "cpus": 0.5, "disk": "1MiB", "max_jobs": 4},
    {"id": "narrow", "memory": "48MiB", "cpus": 0.25, "disk": "1MiB", "max_jobs": 1, "max_job_time": "60s"},
    {"id": "brief", "memory": "48MiB", "disk": "1MiB", "max_job_time": "2s"},
)
FILL = """\
def fill(size):
    for name in "abc":
        with open("/data/outputs/" + name, "wb") as file:
            file.write(b"x" * size)
"""
SLEEP = "import time\nprint('at work', flush=True)\ntime.sleep(100)\n"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The site, who asks it, and a registry that never answers."""

    site: JobSite
    anne: Consumer
    bert: Consumer
    docker: docker.DockerClient
    silent_port: int

    def raw(self, code: str) -> dict[str, Any]:
        return raw_code(self.site.shelf.python, code)

    def begin(self, code: str, *data_sets: str, by: Consumer | None = None, **more: Any) -> Job:
        return (by or self.anne).start(data_sets or (PATIENTS,), self.raw(code), **more)

    def done(self, code: str, *data_sets: str, **more: Any) -> Job:
        """Run a job to its end."""
        ended = self.anne.ended(self.begin(code, *data_sets, **more))
        assert ended["status"] == 70, (ended, self.site.agent.log_tail())
        return ended

    def said(self, code: str, *data_sets: str, **more: Any) -> Any:
        """Run a job to its end and read the facts it wrote."""
        outputs = self.anne.outputs(self.done(code, *data_sets, **more))
        return json.loads(outputs["facts.json"])

    def containers(self) -> list[Any]:
        """List the containers of jobs that are at work."""
        found = self.site.agent.containers(everything=False)
        return [each for each in found if int(each.labels.get("node-agent.run", 0)) > FIRST_JOB_RUN]

    def researcher(self) -> Researcher:
        lab = self.site.lab
        return Researcher.at(lab.url, username="alpha", password=lab.server.passwords["alpha"])

    def send(self, who: Researcher, script: str) -> int:
        """Send a task through the coordinating server."""
        image = self.site.shelf.obedient
        order = Order(
            image=f"{image.image}@{image.digest}",
            method="script",
            organizations=(self.site.lab.organization_ids["alpha"],),
            collaboration_id=self.site.lab.collaboration_id,
            kwargs={"script": script},
        )
        return who.send(order)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("data")
    files = {
        name: folder / f"{name}.csv" for name in ("patients", "visits", "lost", "shy")
    }  # every data set is a file
    for name, file in files.items():
        file.write_text(ROWS if name == "patients" else MORE_ROWS)
        file.chmod(0o644)
    scans = folder / "scans"
    scans.mkdir()
    for name in ("b.txt", "a.txt"):
        (scans / name).write_text(name)
    offers = (
        Offer(label="patients", path=files["patients"], extras={**RAW, **TRUSTING}),
        Offer(label="visits", path=files["visits"], extras=RAW),
        Offer(label="lost", path=files["lost"], extras=RAW),
        Offer(label="shy", path=files["shy"], extras={"raw_algorithms": True}),
        Offer(label="scans", path=scans, type="folder", extras=RAW),
    )
    silent_port = free_port()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        site = stack.enter_context(
            job_site(
                client,
                offers,
                api={"environments": ENVIRONMENTS, "max_waiting": MOST_WAITING},
                other_registry=f"127.0.0.1:{silent_port}",
            )
        )
        # gone after the agent has looked at it
        files["lost"].unlink()
        yield Place(
            site=site,
            anne=site.consumer(0x11),
            bert=site.consumer(0x22),
            docker=client,
            silent_port=silent_port,
        )


@pytest.fixture(autouse=True)
def _every_number_grew_and_every_end_was_written_once(place: Place) -> Iterator[None]:
    yield
    assert not place.anne.memory.faults
    assert not place.bert.memory.faults


# --- how jobs end ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A job, and what must be said of it when it is over."""

    code: str
    status: int
    stopreq: int = 0
    exit_code: int | None = None
    out_of_memory: bool = False
    data_set: str = PATIENTS
    more: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    """The image is asked for by this digest, which the registry does not have."""


ENDINGS: Mapping[str, Ending] = {
    "all is well": Ending(code="open('/data/outputs/x', 'w').write('well')\n", status=70, exit_code=0),
    "the algorithm crashes": Ending(code="raise SystemExit(3)", status=41, exit_code=3),
    "the algorithm takes too much memory": Ending(
        code="print('taking', flush=True)\nheld = b'x' * (256 << 20)\n",
        status=41,
        exit_code=137,
        out_of_memory=True,
    ),
    "the image does not exist": Ending(code="print('nowhere')", status=32, digest="sha256:" + "00" * 32),
    "the data went away": Ending(code="print('never')", status=31, data_set=LOST),
    "the consumer's own time is over": Ending(code=SLEEP, status=41, stopreq=2, more={"maxJobDuration": 1}),
    "the environment's time is over": Ending(
        code=SLEEP, status=41, stopreq=2, more={"environment": "brief", "maxJobDuration": 50}
    ),
    "one output is too large": Ending(
        code="with open('/data/outputs/x', 'wb') as x:\n    x.write(bytes(9_000_000))\n", status=42
    ),
    "the outputs are too large together": Ending(code=f"{FILL}fill(600_000)\n", status=42),
    "the disk is filled by a job that goes on": Ending(code=f"{FILL}fill(900_000)\n{SLEEP}", status=42),
}


@pytest.fixture(scope="module")
def ended(place: Place) -> dict[str, Job]:
    """All of them at the same time, to their ends."""
    began = {name: _begun(place, ending) for name, ending in ENDINGS.items()}
    for job in began.values():
        assert job["dateFinished"] is None
    return {name: place.anne.ended(job) for name, job in began.items()}


def _begun(place: Place, ending: Ending) -> Job:
    python = place.site.shelf.python
    image = python if ending.digest is None else Container(python.image, ending.digest)
    return place.anne.start([ending.data_set], raw_code(image, ending.code), **ending.more)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_job_says_by_its_number_how_it_ended(place: Place, ended: dict[str, Job], name: str) -> None:
    job, ending = ended[name], ENDINGS[name]
    details = job["terminationDetails"]
    assert (job["status"], job["stopreq"]) == (ending.status, ending.stopreq), job
    if ending.exit_code is not None:
        assert details == {"exitCode": ending.exit_code, "OOMKilled": ending.out_of_memory}
    assert details["OOMKilled"] is ending.out_of_memory
    assert (ending.status == 70) == (job["reason"] == "")
    assert int(job["dateFinished"]) >= int(job["dateCreated"])
    assert place.anne.look(job)["dateFinished"] == job["dateFinished"]


def test_what_is_said_of_an_end_tells_nothing_of_the_machine(place: Place, ended: dict[str, Job]) -> None:
    for job in ended.values():
        said = json.dumps(job)
        assert str(place.site.agent.folder) not in said
        assert "/tmp" not in said
        assert "lost.csv" not in said


def test_the_log_of_a_job_that_failed_can_be_fetched(place: Place, ended: dict[str, Job]) -> None:
    job = ended["the algorithm takes too much memory"]
    (entry,) = job["results"]
    assert (entry["filename"], entry["type"]) == ("algorithm.log", "algorithmLog")
    own, said_by_node = place.anne.result(job, entry["index"]).content.splitlines()
    assert own == b"taking"
    assert said_by_node.startswith(b"[node] The algorithm ran out of memory")


# --- stopping -------------------------------------------------------------------------------------------------


def _assert_stopped(job: Job) -> None:
    assert (job["status"], job["stopreq"], job["statusText"]) == (70, 1, "Job stopped"), job
    assert job["dateFinished"] is not None


def test_a_running_job_that_is_stopped_is_70_and_keeps_its_log(place: Place) -> None:
    job = place.anne.reached(place.begin(SLEEP), 40)
    assert place.anne.stop(job)["stopreq"] == 1
    over = place.anne.ended(job)
    _assert_stopped(over)
    assert place.anne.outputs(over)["algorithm.log"].startswith(b"at work\n[node] ")
    # once more is no fault and changes nothing
    assert place.anne.stop(over)["dateFinished"] == over["dateFinished"]


def test_a_job_is_stopped_while_its_image_is_pulled_from_a_registry_that_hangs(place: Place) -> None:
    image = Container(f"127.0.0.1:{place.silent_port}/jobs/python", "sha256:" + "ab" * 32)
    with socket.create_server(("127.0.0.1", place.silent_port)):
        job = place.anne.start([PATIENTS], raw_code(image, "print('never')"))
        place.anne.reached(job, 10)
        place.anne.stop(job)
        _assert_stopped(place.anne.ended(job))


def test_a_waiting_job_is_stopped_without_ever_having_begun(place: Place) -> None:
    first = place.anne.reached(place.begin(SLEEP, environment="narrow"), 40)
    waiting = place.begin("print('never')", environment="narrow")
    place.anne.stop(waiting)
    over = place.anne.ended(waiting)
    _assert_stopped(over)
    assert (over["terminationDetails"]["exitCode"], over["results"]) == (None, [])
    assert place.anne.memory.numbers[over["jobId"]] == [1, 70]
    assert place.anne.look(first)["status"] == 40
    place.anne.stop(first)
    _assert_stopped(place.anne.ended(first))


# --- what jobs leave ------------------------------------------------------------------------------------------

LEAVE_MUCH = """\
import os, socket
print("done")
os.chdir("/data/outputs")
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
names = [("b.csv", "b"), ("a.txt", "0123456789"), ("A.txt", "capital"), ("$(id) 'x';\\n", "odd"), ("..x", "dots")]
for name, text in reversed(names) if os.path.exists(BACKWARDS) else names:
    write(name, text)
write(b"\\xff\\xfe.bin", "not text")
os.makedirs("nested/deep/empty")
write("nested/deep/x", "x")
write("nested/y", "y")
os.mkdir("also")
os.symlink("/etc/passwd", "passwd")
os.symlink("/etc/passwd", "nested/passwd")
os.symlink("/data/inputs", "inputs")
os.symlink("/data/inputs", "nested/inputs")
os.symlink("a.txt", "same.txt")
os.mkfifo("pipe")
os.mkfifo("nested/pipe")
socket.socket(socket.AF_UNIX).bind("socket")
for device in ("device", "nested/device"):
    try:
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def left(place: Place) -> Job:
    return place.done(LEAVE_MUCH.replace("BACKWARDS", "'/nowhere'"))


def test_outputs_are_listed_in_the_same_order_however_they_were_made(place: Place, left: Job) -> None:
    again = place.done(LEAVE_MUCH.replace("BACKWARDS", "'/data'"))
    assert again["results"] == left["results"]
    assert place.anne.outputs(again) == place.anne.outputs(left)
    assert [entry["index"] for entry in left["results"]] == list(range(len(left["results"])))
    assert [(entry["filename"], entry["filesize"]) for entry in left["results"]][1:5] == [
        ("..x", 4),
        ("A.txt", 7),
        ("a.txt", 10),
        ("b.csv", 1),
    ]


def test_only_ordinary_files_leave_and_under_harmless_names(place: Place, left: Job) -> None:
    outputs = place.anne.outputs(left)
    assert len(outputs) == len(left["results"])
    assert {entry["type"] for entry in left["results"][:-1]} == {"output"}
    assert left["results"][-1]["type"] == "algorithmLog"
    assert outputs.pop("algorithm.log") == b"done\n"
    archive = outputs.pop("outputs.tar")
    assert sorted(outputs.values()) == sorted([b"b", b"0123456789", b"capital", b"odd", b"dots", b"not text"])
    for name in outputs:
        assert name.isascii()
        assert not set(name) & set("/\\$'\";\n|<>&`")
        assert name.strip(". ")
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        members = {member.name: member for member in opened}
        assert set(members) == {
            "also",
            "nested",
            "nested/deep",
            "nested/deep/empty",
            "nested/deep/x",
            "nested/y",
        }
        assert all(member.isfile() or member.isdir() for member in members.values())
        assert {(member.uid, member.uname, member.mtime) for member in members.values()} == {(0, "", 0)}
    everything = b"".join(outputs.values()) + archive
    assert b"root:" not in everything
    assert b"patient,age" not in everything


def test_a_span_of_a_result_can_be_fetched(place: Place, left: Job) -> None:
    index = next(entry["index"] for entry in left["results"] if entry["filename"] == "a.txt")
    whole = place.anne.result(left, index)
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert "attachment" in whole.headers["Content-Disposition"]
    for span, content in {"bytes=2-4": b"234", "bytes=7-": b"789", "bytes=-3": b"789"}.items():
        part = place.anne.result(left, index, span=span)
        assert (part.status_code, part.content) == (206, content)
    assert part.headers["Content-Range"] == "bytes 7-9/10"
    with pytest.raises(Refused) as refused:
        place.anne.result(left, index, span="bytes=50-")
    assert refused.value.status == 416


def test_nobody_else_fetches_a_result_or_stops_a_job(place: Place, left: Job) -> None:
    for act in (
        lambda: place.bert.result(left, 0),
        lambda: place.bert.stop(left),
        lambda: place.bert.delete(left),
    ):
        with pytest.raises(Refused) as refused:
            act()
        assert refused.value.status == 400
        assert "Invalid signature provided" in refused.value.body["errors"]["signature"][0]
    assert left["jobId"] not in {job["jobId"] for job in place.bert.jobs()}


def test_a_log_leaves_only_where_every_data_set_shares_it(place: Place) -> None:
    code = "print('shown')\nopen('/data/outputs/x', 'w').write('x')\n"
    shared, kept_back = place.begin(code, PATIENTS, VISITS), place.begin(code, PATIENTS, SHY)
    assert place.anne.outputs(place.anne.ended(shared)) == {"x": b"x", "algorithm.log": b"shown\n"}
    outputs = place.anne.outputs(place.anne.ended(kept_back))
    # what the node itself has to say may be there, and nothing of the algorithm's
    said_by_node = outputs.pop("algorithm.log", b"")
    assert outputs == {"x": b"x"}
    assert all(line.startswith(b"[node] ") for line in said_by_node.splitlines())


# --- what a job finds -----------------------------------------------------------------------------------------

LOOK_AROUND = """\
import json, os, socket
def listed(top):
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names)
def written(path):
    try:
        with open(path, "a") as file:
            file.write("mine")
    except OSError as error:
        return error.__class__.__name__
    return "written"
def reached(host, port):
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return "reached"
    except OSError as error:
        return "not reached"
def asked(host, port):
    with socket.create_connection((host, port), timeout=20) as line:
        line.sendall(b"GET /organization HTTP/1.0\\r\\nAuthorization: Bearer x\\r\\n\\r\\n")
        return int(line.recv(100).split()[1])
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
inputs = listed("/data/inputs")
facts = {
    "user": [os.getuid(), os.getgid()],
    "status": {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")},
    "inputs": {path: open(path).read() for path in inputs},
    "ddos": {path: json.load(open(path))["id"] for path in listed("/data/ddos")},
    "code": listed("/data/transformations"),
    "variables": {name: os.environ.get(name) for name in ("DIDS", "TRANSFORMATION_DID", "INPUTS", "OUTPUTS")},
    "written": {path: written(path) for path in [
        *inputs, *listed("/data/transformations"), *listed("/data/ddos"), "/data/inputs/new", "/data/ddos/new",
        "/data/transformations/new", "/etc/new", "/new", "/data/outputs/new",
    ]},
    "removed": [],
    "ways": [reached(*way) for way in WAYS],
    "proxy": asked("proxyserver", PROXY),
}
for path in inputs:
    try:
        os.remove(path)
        facts["removed"].append(path)
    except OSError:
        pass
json.dump(facts, open("/data/outputs/facts.json", "w"))
"""


@contextlib.contextmanager
def listening_everywhere() -> Iterator[int]:
    """Let a service of this machine listen on all its addresses."""
    with socket.create_server(("", free_port("0.0.0.0"))) as listener:
        yield int(listener.getsockname()[1])


def test_a_job_finds_its_own_inputs_read_only_and_no_way_to_anything_else(place: Place) -> None:
    config = place.site.agent.config_file.read_text()
    proxy = next(int(line.split()[1]) for line in config.splitlines() if "proxy_port" in line)
    other = place.anne.reached(place.begin(SLEEP, VISITS), 40)
    with listening_everywhere() as port:
        ways = [("proxyserver", port), ("172.17.0.1", port)]
        code = LOOK_AROUND.replace("WAYS", repr(ways)).replace("PROXY", str(proxy))
        facts = place.said(code, PATIENTS, SCANS, custom={"column": "age"})
    place.anne.stop(other)
    _assert_stopped(place.anne.ended(other))
    patients, scans = map(short_did, (PATIENTS, SCANS))
    uid, gid = facts["user"]
    assert IDS_UNDER_ROOT[0] <= min(uid, gid) <= max(uid, gid) <= IDS_UNDER_ROOT[1]
    assert facts["status"]["CapEff"] == facts["status"]["CapBnd"] == "0" * 16
    assert (facts["status"]["NoNewPrivs"], facts["status"]["Seccomp"]) == ("1", "2")
    assert facts["inputs"].pop("/data/inputs/algoCustomData.json") == '{"column": "age"}'
    assert facts["inputs"] == {
        f"/data/inputs/{patients}/0": ROWS,
        f"/data/inputs/{scans}/0": "a.txt",
        f"/data/inputs/{scans}/1": "b.txt",
    }
    assert facts["ddos"] == {f"/data/ddos/{patients}": PATIENTS, f"/data/ddos/{scans}": SCANS}
    assert facts["code"] == ["/data/transformations/algorithm"]
    assert json.loads(facts["variables"].pop("DIDS")) == [patients, scans]
    assert facts["variables"]["TRANSFORMATION_DID"]
    assert facts["written"].pop("/data/outputs/new") == "written"
    assert set(facts["written"].values()) <= {"OSError", "PermissionError"}, facts["written"]
    assert facts["removed"] == []
    assert facts["ways"] == ["not reached"] * len(ways)
    assert facts["proxy"] in {401, 403}
    assert place.done(f"print(open('/data/inputs/{patients}/0').read())")["status"] == 70


# --- environments ---------------------------------------------------------------------------------------------

TELL_THE_TIME = """\
import json, time
began = time.time()
time.sleep(0.3)
json.dump([began, time.time()], open("/data/outputs/facts.json", "w"))
"""


def test_an_environment_with_one_place_runs_its_jobs_one_after_the_other_in_order(place: Place) -> None:
    first = place.anne.reached(place.begin(SLEEP, environment="narrow"), 40)
    owners = (place.anne, place.bert, place.anne)
    jobs = [place.begin(TELL_THE_TIME, environment="narrow", by=who) for who in owners]
    load = place.anne.environments()["narrow"]
    assert (load["currentJobs"], load["queuedJobs"], load["maxJobs"]) == (1, 3, 1)
    place.anne.stop(first)
    times = [
        json.loads(who.outputs(who.ended(job))["facts.json"]) for who, job in zip(owners, jobs, strict=True)
    ]
    for (_, end), (begin, _) in itertools.pairwise(times):
        assert end <= begin
    _assert_stopped(place.anne.ended(first))


def test_a_container_has_the_limits_of_its_environment(place: Place) -> None:
    job = place.anne.reached(place.begin(SLEEP, environment="narrow"), 40)
    (container,) = place.containers()
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (48 * MIB, 250_000_000)
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
    place.anne.stop(job)
    _assert_stopped(place.anne.ended(job))


def test_more_jobs_than_may_wait_are_refused_and_can_be_started_later(place: Place) -> None:
    jobs = [place.anne.reached(place.begin(SLEEP, environment="narrow"), 40)]
    jobs += [place.begin("print('well')", environment="narrow") for _ in range(MOST_WAITING - 1)]
    with pytest.raises(Refused) as refused:
        place.begin("print('one too many')", environment="narrow")
    assert refused.value.status == 429
    for job in reversed(jobs):
        place.anne.stop(job)
    for job in jobs:
        _assert_stopped(place.anne.ended(job))
    assert place.done("print('well')", environment="narrow")["status"] == 70


def test_a_deleted_job_leaves_nothing(place: Place) -> None:
    code = "open('/data/outputs/x', 'w').write('x')\n" + SLEEP
    job = place.anne.reached(place.begin(code), 40)
    over = place.done("open('/data/outputs/x', 'w').write('x')\n")
    (container,) = place.containers()
    for each in (job, over):
        shown = place.anne.delete(each)
        assert (shown["removed"], shown["results"]) == (1, [])
    state_dir = place.site.agent.state_dir
    eventually(lambda: not place.containers(), within=PATIENCE, what="no container")
    eventually(lambda: not list((state_dir / "runs").iterdir()), within=PATIENCE, what="no run folder")
    with pytest.raises(docker.errors.NotFound):
        place.docker.containers.get(container.id)
    for each in (job, over):
        eventually(
            lambda name=each["jobId"]: not list((state_dir / "compute").glob(f"{name}*")),
            within=PATIENCE,
            what="no results",
        )
        assert each["jobId"] not in {listed["jobId"] for listed in place.anne.jobs()}
        with pytest.raises(Refused):
            place.anne.result(each, 0)


# --- beside the coordinating server ---------------------------------------------------------------------------


def test_an_algorithm_made_for_vantage6_runs_as_a_job_and_its_token_opens_nothing(place: Place) -> None:
    script = """\
token = open(env("TOKEN_FILE")).read()
write({
    "asked": [asked["method"], asked["args"], asked["kwargs"]["more"]],
    "rows": open(env("PATIENTS_DATABASE_URI")).read(),
    "labels": env("USER_REQUESTED_DATABASE_LABELS"),
    "proxy": [call("GET", "/organization", token), call("GET", "/run", token), call("POST", "/task", token, {})],
})
print("done")
"""
    custom = {"method": "script", "args": [1], "kwargs": {"script": script, "more": {"x": None}}}
    job = place.anne.ended(place.anne.start([PATIENTS], catalogued(did_of("obedient")), custom=custom))
    assert job["status"] == 70, job
    assert job["algoDID"] == did_of("obedient")
    outputs = place.anne.outputs(job)
    said = json.loads(outputs["result.json"])
    assert said["asked"] == ["script", [1], {"x": None}]
    assert (said["rows"], said["labels"]) == (ROWS, "patients")
    assert set(said["proxy"]) <= {401, 403}
    assert outputs["algorithm.log"] == b"done\n"


def test_a_kill_of_everything_at_the_server_and_its_absence_leave_jobs_alone(place: Place) -> None:
    who = place.researcher()
    job = place.anne.reached(place.begin(SLEEP), 40)
    task = place.send(who, "time.sleep(100)")
    eventually(lambda: who.runs(task)[0].status == "active", within=PATIENCE, what="a run of the server")
    node = place.site.lab.node_ids["alpha"]
    who._ask("POST", "kill/node/tasks", body={"id": node})
    eventually(lambda: who.runs(task)[0].is_over, within=PATIENCE, what="the end of the run")
    assert who.runs(task)[0].status == "killed by user"
    assert place.anne.look(job)["status"] == 40
    seen = len(_events(place, "server_online"))
    place.site.lab.stop()
    try:
        assert place.done("print('well')")["status"] == 70
        assert place.anne.look(job)["status"] == 40
    finally:
        place.site.lab.start()
    # with the connection comes a complete list of what is open at the server
    eventually(lambda: len(_events(place, "server_online")) > seen, within=PATIENCE, what="the server again")
    after = place.send(who, "write({})")
    eventually(lambda: who.runs(after)[0].is_over, within=PATIENCE, what="the end of the run")
    assert who.runs(after)[0].status == "completed"
    assert place.anne.look(job)["status"] == 40
    place.anne.stop(job)
    _assert_stopped(place.anne.ended(job))


def _events(place: Place, event: str) -> Sequence[Mapping[str, Any]]:
    return [line for line in place.site.agent.log_lines() if line.get("event") == event]


def test_runs_of_the_server_and_jobs_share_the_slots(place: Place) -> None:
    who = place.researcher()
    tasks = [place.send(who, "time.sleep(100)") for _ in range(6)]
    for task in tasks:
        eventually(lambda task=task: who.runs(task)[0].status == "active", within=PATIENCE, what="a run")
    job = place.begin("print('well')")
    waits = eventually(
        lambda: [run for run in place.site.agent.runs() if run.get("waiting_for")],
        within=PATIENCE,
        what="who waits",
    )
    assert "limits.concurrent_runs" in waits[0]["waiting_for"]
    assert place.anne.look(job)["status"] == 1
    unwanted = place.begin("print('never')")
    place.anne.stop(unwanted)
    _assert_stopped(place.anne.ended(unwanted))
    for task in tasks:
        who.kill(task)
    assert place.anne.ended(job)["status"] == 70
    for task in tasks:
        eventually(lambda task=task: who.runs(task)[0].is_over, within=PATIENCE, what="the end of a run")
