"""Loading a configuration: what comes out, and how every fault is told."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node_agent.app import _warn_of_one_user
from node_agent.config import ANY_MACHINE, Machine, Settings, load
from node_agent.config.machine import Kind, ThisMachine
from node_agent.domain.container import ContainerLimits, PullPolicy, Relaxation
from node_agent.domain.database import DatabaseType
from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError

KEY = "00000000-0000-4000-8000-00000000abcd"
REST = f"""
name: alpha
server: {{url: https://server.example.org/api, api_key: {KEY}}}
state_dir: /var/lib/alpha
"""


class PaperMachine:
    """A machine whose files are written down in a dictionary."""

    def __init__(
        self,
        files: Mapping[str, Kind] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        user: tuple[int, int] = (1000, 1001),
        secrets: Mapping[str, str] | None = None,
        last_id: int = 2**32 - 2,
    ) -> None:
        self.last_id = last_id
        self._files = files or {}
        self._secrets = secrets or {}
        self.environment = environment or {}
        self.user = user

    def kind(self, path: Path) -> Kind:
        return self._files.get(str(path), Kind.MISSING)

    def read_secret(self, path: Path) -> Secret:
        if str(path) not in self._secrets:
            raise ValueError("is missing")
        return Secret(self._secrets[str(path)])


def load_text(text: str, tmp_path: Path, machine: Machine | None = None) -> Settings:
    file = tmp_path / "alpha.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, machine=machine or PaperMachine())


def faults_of(text: str, tmp_path: Path, machine: Machine | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, tmp_path, machine)
    return caught.value.faults


def fault_of(text: str, tmp_path: Path, machine: Machine | None = None) -> str:
    (fault,) = faults_of(text, tmp_path, machine)
    return fault


# --- what comes out --------------------------------------------------------------------------------------------


def test_a_short_file_gives_the_documented_defaults(tmp_path: Path) -> None:
    settings = load_text(REST, tmp_path)
    assert settings.container_limits == ContainerLimits(
        cpus=2, memory=4 * 2**30, pids=512, tmp_size=2**30, file_size=2**30, open_files=4096
    )
    assert settings.limits.run_time == 86_400
    assert settings.limits.concurrent_runs == 4
    assert settings.images.pull is PullPolicy.ALWAYS
    assert settings.algorithms == ()
    assert settings.container_user == (1000, 1001)
    assert not settings.network.accept_open_host


def test_under_root_algorithms_run_as_a_user_of_their_own(tmp_path: Path) -> None:
    assert load_text(REST, tmp_path, PaperMachine(user=(0, 0))).container_user == (64198, 64198)


def test_under_root_each_run_has_a_uid_of_its_own(tmp_path: Path) -> None:
    settings = load_text(REST, tmp_path, PaperMachine(user=(0, 0)))
    assert settings.container_ids == range(2_000_300_000, 2_000_365_536)
    assert (settings.container_reader, settings.container_groups) == ((2_000_365_535, 64198), (64198,))


def test_a_chosen_range_of_uids_counts(tmp_path: Path) -> None:
    settings = load_text(REST + "container_users: '70000-70255'\n", tmp_path, PaperMachine(user=(0, 0)))
    assert settings.container_ids == range(70_000, 70_256)


@pytest.mark.parametrize("more", ["", "container_users: '70000-70255'\n"])
def test_in_a_small_user_namespace_uids_are_taken_from_inside_it(tmp_path: Path, more: str) -> None:
    settings = load_text(REST + more, tmp_path, PaperMachine(user=(0, 0), last_id=65535))
    assert settings.container_ids == range(61_440, 63_488)


def test_where_there_are_hardly_any_uids_all_runs_share_one(tmp_path: Path) -> None:
    settings = load_text(REST, tmp_path, PaperMachine(user=(0, 0), last_id=1000))
    assert (settings.container_ids, settings.container_groups) == (None, ())
    assert settings.container_reader == (64198, 64198)


@pytest.mark.parametrize(
    ("more", "user"), [("container_user: '5:6'\n", (0, 0)), ("", (1000, 1001))], ids=["chosen", "no root"]
)
def test_a_chosen_user_and_that_of_an_ordinary_agent_are_for_all_runs(
    tmp_path: Path, more: str, user: tuple[int, int]
) -> None:
    settings = load_text(REST + more, tmp_path, PaperMachine(user=user))
    assert (settings.container_ids, settings.container_reader) == (None, settings.container_user)


@pytest.mark.parametrize(
    ("more", "user", "said"),
    [
        ("", (1000, 1001), ["runs_share_user"]),
        ("container_user: '5:6'\n", (1000, 1001), []),
        ("", (0, 0), []),
    ],
    ids=["no root", "chosen", "root"],
)
def test_an_agent_that_cannot_give_runs_uids_says_so_unless_the_owner_chose_one_user(
    tmp_path: Path, more: str, user: tuple[int, int], said: list[str]
) -> None:
    with capture_logs() as lines:
        _warn_of_one_user(load_text(REST + more, tmp_path, PaperMachine(user=user)))
    assert [line["event"] for line in lines] == said


def test_this_machine_can_give_away_as_many_ids_as_its_user_namespace_has() -> None:
    numbers = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    assert 0 < ThisMachine().last_id <= max(int(first) + int(count) - 1 for first, _, count in numbers)


def test_databases_come_out_in_order_and_in_domain_words(tmp_path: Path) -> None:
    text = REST + (
        "databases:\n"
        "- {label: two, type: SQLite, uri: /d/two.db, env: {schema: x}}\n"
        "- {label: one, type: sql, uri: postgresql://h/db}\n"
    )
    settings = load_text(text, tmp_path, PaperMachine({"/d/two.db": Kind.FILE}))
    assert [database.label for database in settings.databases] == ["two", "one"]
    assert settings.databases[0].type is DatabaseType.SQLITE
    assert settings.databases[0].env == {"schema": "x"}
    assert settings.databases[1].path is None


def test_relaxations_come_out_in_domain_words(tmp_path: Path) -> None:
    text = REST + "hardening: {relax: [{image: x/*, image_user: true, capabilities: [cap_chown]}]}\n"
    assert load_text(text, tmp_path).relaxations == (
        Relaxation(image="x/*", image_user=True, capabilities=("CHOWN",)),
    )


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 512 * 2**20), ("1GB", 10**9), ("1.5GiB", 3 * 2**29), ("64 MB", 64 * 10**6)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int, tmp_path: Path) -> None:
    assert load_text(f"{REST}limits: {{memory: {text}}}\n", tmp_path).limits.memory == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("1h30m", 5400), ("2d", 172_800)]
)
def test_durations_are_read_with_their_unit(text: str, seconds: int, tmp_path: Path) -> None:
    assert load_text(f"{REST}limits: {{run_time: {text}}}\n", tmp_path).limits.run_time == seconds


def test_a_trailing_slash_of_the_url_does_not_matter(tmp_path: Path) -> None:
    assert load_text(REST.replace("/api,", "/api/,"), tmp_path).server.url == "https://server.example.org/api"


def test_a_setting_without_value_is_as_if_it_was_not_there(tmp_path: Path) -> None:
    settings = load_text(REST + "databases:\nlimits: {cpus: null}\nnetwork: {subnet: ~}\n", tmp_path)
    assert settings.databases == ()
    assert settings.limits.cpus == 2


# --- environment and secrets -----------------------------------------------------------------------------------


def test_any_value_may_come_from_the_environment(tmp_path: Path) -> None:
    text = (
        "name: alpha\nserver:\n  url: https://${HOST}.org/api\n  api_key: ${KEY}\nstate_dir: /var/lib/alpha\n"
        "limits: {cpus: '${CPUS}'}\nnetwork: {accept_open_host: '${OPEN}'}\n"
    )
    environment = {"KEY": KEY, "HOST": "s7", "CPUS": "1.5", "OPEN": "true"}
    settings = load_text(text, tmp_path, PaperMachine(environment=environment))
    assert settings.server.api_key == Secret(KEY)
    assert settings.server.url == "https://s7.org/api"
    assert settings.limits.cpus == 1.5
    assert settings.network.accept_open_host


def test_a_doubled_dollar_is_no_variable(tmp_path: Path) -> None:
    text = REST + "databases: [{label: a, type: sql, uri: 'x://h:1', env: {p: '$${NOT}'}}]\n"
    assert load_text(text, tmp_path).databases[0].env == {"p": "${NOT}"}


def test_a_variable_that_is_not_set_is_named_once(tmp_path: Path) -> None:
    fault = fault_of(REST.replace(KEY, '"${NOPE}"'), tmp_path)
    assert "server.api_key (line 3)" in fault
    assert "environment variable NOPE" in fault


def test_the_content_of_a_variable_is_in_no_fault(tmp_path: Path) -> None:
    text = REST.replace("alpha\nserver", "${SECRET}\nserver") + "policy: {algorithms: ['${SECRET}:1']}\n"
    faults = faults_of(text, tmp_path, PaperMachine(environment={"SECRET": "Hunter2!"}))
    assert len(faults) == 2
    assert not any("Hunter2" in fault for fault in faults)


def test_the_api_key_may_stand_in_a_file(tmp_path: Path) -> None:
    text = REST.replace(f"api_key: {KEY}", "api_key_file: /k")
    assert load_text(text, tmp_path, PaperMachine(secrets={"/k": KEY})).server.api_key == Secret(KEY)


def test_a_bare_file_name_is_a_systemd_credential(tmp_path: Path) -> None:
    text = REST.replace(f"api_key: {KEY}", "api_key_file: alpha.key")
    machine = PaperMachine(secrets={"/run/c/alpha.key": KEY}, environment={"CREDENTIALS_DIRECTORY": "/run/c"})
    assert load_text(text, tmp_path, machine).server.api_key == Secret(KEY)
    assert "must be an absolute path" in fault_of(text, tmp_path)


def test_the_private_key_is_a_path_or_a_systemd_credential(tmp_path: Path) -> None:
    machine = PaperMachine(environment={"CREDENTIALS_DIRECTORY": "/run/c"})
    for given, meant in (("/k/alpha.pem", "/k/alpha.pem"), ("alpha.pem", "/run/c/alpha.pem")):
        text = REST + f"encryption: {{private_key: {given}}}\n"
        assert load_text(text, tmp_path, machine).private_key == Path(meant)
    assert load_text(REST, tmp_path).private_key is None


def test_what_an_api_key_looks_like_is_the_servers_business(tmp_path: Path) -> None:
    settings = load_text(REST.replace(KEY, "not-a-uuid"), tmp_path)
    assert settings.server.api_key == Secret("not-a-uuid")


def test_key_and_key_file_together_are_refused_and_so_is_neither(tmp_path: Path) -> None:
    both = REST.replace("api_key:", "api_key_file: /k, api_key:")
    assert "keep one of the two" in fault_of(both, tmp_path, PaperMachine(secrets={"/k": KEY}))
    neither = REST.replace(f", api_key: {KEY}", "")
    assert "server.api_key_file" in fault_of(neither, tmp_path)


def test_secrets_do_not_show_in_the_settings(tmp_path: Path) -> None:
    text = REST + (
        "images: {registries: [{host: r, username: u, password: hunter2}]}\n"
        "databases: [{label: a, type: sql, uri: 'x://u:hunter2@h:1', env: {p: hunter2}}]\n"
    )
    settings = load_text(text, tmp_path)
    assert "hunter2" not in repr(settings)
    assert KEY not in repr(settings)
    assert settings.secrets == (Secret(KEY), Secret("hunter2"))


def test_a_secret_file_open_to_others_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY, encoding="utf-8")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod o= "):
        ThisMachine({}).read_secret(file)
    file.chmod(0o640)
    assert ThisMachine({}).read_secret(file) == Secret(KEY)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 5000])
def test_a_secret_file_that_holds_no_secret_is_refused_without_showing_it(
    content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ValueError, match=r"empty|no text|more than") as caught:
        ThisMachine({}).read_secret(file)
    assert caught.value.__cause__ is None


def test_what_stands_at_a_path_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine = ThisMachine({})
    assert machine.kind(tmp_path) is Kind.FOLDER
    assert machine.kind(tmp_path / "file") is Kind.FILE
    assert machine.kind(tmp_path / "none") is Kind.MISSING
    assert machine.kind(Path("/dev/null")) is Kind.OTHER


def test_a_command_that_only_looks_needs_no_files(tmp_path: Path) -> None:
    text = REST.replace(f"api_key: {KEY}", "api_key_file: /gone")
    settings = load_text(
        f"{text}databases: [{{label: a, type: csv, uri: /gone.csv}}]\n", tmp_path, ANY_MACHINE
    )
    assert settings.state_dir == Path("/var/lib/alpha")


# --- faults ----------------------------------------------------------------------------------------------------


def test_every_fault_is_listed_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "name: Alpha\n"
        "server: {url: ftp://x}\n"
        "databses: []\n"
        "databases:\n"
        "- {label: default, type: cvs, uri: /d/a.csv}\n"
        "- {label: DEFAULT, type: csv, uri: /d/none.csv}\n"
        "limits: {pids: 1, memory: 4}\n"
    )
    faults = faults_of(text, tmp_path)
    assert [fault.partition(": ")[0] for fault in faults] == [
        "state_dir",
        "name (line 1)",
        "server.api_key_file (line 2)",
        "server.url (line 2)",
        "databses (line 3)",
        "databases[0].type (line 5)",
        "databases[1].label (line 6)",
        "databases[1].uri (line 6)",
        "limits.memory (line 7)",
        "limits.pids (line 7)",
    ]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("databses: []", 'did you mean "databases"?'),
        ("limits: {memroy: 1GiB}", 'did you mean "memory"?'),
        ("api_key: x", "here it is said with server.api_key_file"),
        ("server_url: x", "here it is said with server.url"),
        ("task_dir: /x", "here it is said with state_dir"),
        ("share: {zzz: 1}", "(here: node_facts, "),
        ("logging: {level: inof}", 'not one of debug, info, warning, error; did you mean "info"?'),
        ("images: {pull: sometimes}", "not one of always, missing, never"),
        ("limits: {memory: 4}", "has no unit"),
        ("limits: {memory: 4G}", "is not a size"),
        ("limits: {memory: 1KiB}", "must be at least 16MiB"),
        ("limits: {run_time: 24}", "has no unit"),
        ("limits: {run_time: 0s}", "must be at least 1s"),
        ("limits: {run_time: 400d}", "must be at most 365d"),
        ("limits: {pids: 1.5}", "must be a whole number"),
        ("limits: {cpus: '2'}", "must be a number, without quotes"),
        ("limits: {cpus: .nan}", "must be"),
        ("limits: {cpus: true}", "must be a number"),
        ("limits: {concurrent_runs: 0}", "must be at least 1"),
        ("limits: {memory: 2GiB, total_memory: 1GiB}", "(2GiB): no run could ever begin"),
        ("limits: {total_memory: 1GiB}", "is less than limits.memory (4GiB)"),
        ("limits: {pull_time: 0s}", "must be at least 1s"),
        ("limits: {start_time: 5}", "has no unit"),
        ("limits: {min_free_disk: 1}", "has no unit"),
        ("limits: [1]", "must be a block of settings"),
        ("databases: {}", "must be a list"),
        ("network: {accept_open_host: maybe}", "must be true or false"),
        ("network: {proxy_port: 70000}", "must be at most 65535"),
        ("network: {subnet: 8.8.8.0/24}", "must be a private network"),
        ("network: {subnet: 10.0.0.1/24}", "is not an IPv4 network"),
        ("network: {probe_image: 'a b'}", "is not an image reference"),
        ("container_user: root", "must be"),
        ("container_user: '0:0'", "never run as root"),
        ("container_user: '5:0'", "never run as root"),
        ("container_user: '9:99999999999'", "must be"),
        ("container_users: many", "must be"),
        ("container_users: '0-70000'", "above root"),
        ("container_users: '70000-2147483648'", "end at 2147483647"),
        ("container_users: '70000-69000'", "not possible"),
        ("container_users: '70000-70254'", "at least 256"),
        ("container_user: '5:5'\ncontainer_users: '70000-71000'", "keep one of the two"),
        ("docker_host: /run/docker.sock", "unix:///run/docker.sock"),
        ("status: {listen: 127.0.0.1:80}", "not available in this version"),
        ("encryption: {private_key: k.pem}", "must be an absolute path, or the name of a systemd credential"),
        ("encryption: {private_key: 3}", "must be the path of a file"),
        ("compute_api: {listen: x}", "is not address:port"),
        ("policy: {algorithms: ['x/y:1.0']}", "names a tag"),
        ("policy: {algorithms: ['x/y:1.0@sha256:" + "0" * 64 + "']}", "names a tag"),
        ("policy: {algorithms: ['x@sha256:12']}", "no valid digest"),
        ("policy: {algorithms: ['a b']}", "not an image name or pattern"),
        ("policy: {algorithms: [3]}", "put it in quotes"),
        ("policy: {algorithms: x}", "must be a list"),
        ("hardening: {relax: [{image: 'x@sha256:" + "0" * 64 + "'}]}", "without digest"),
        ("hardening: {relax: [{image: x, capabilities: [FLY]}]}", "not a Linux capability"),
        ("images: {registries: [{host: 'a b', username: u, password: p}]}", "not a host name"),
        ("images: {registries: [{host: a, username: u}]}", "give the password as password_file"),
        ("images: {registries: [{host: a, username: u, password: 1}]}", "put it in quotes"),
        ("databases: [{label: 1a, type: sql, uri: 'x://h:1'}]", "is not an identifier"),
        ("databases: [{label: a, type: sql, uri: nothing}]", "is no service address"),
        ("databases: [{label: a, type: csv, uri: d.csv}]", "must be an absolute path"),
        ("databases: [{label: a, type: csv, uri: /d/../x}]", "must be an absolute path"),
        ("databases: [{label: a, type: csv, uri: /none}]", "does not exist: /none"),
        ("databases: [{label: a, type: csv, uri: /hidden/x}]", "may not enter"),
        ("databases: [{label: a, type: csv, uri: /folder}]", "is a folder"),
        ("databases: [{label: a, type: folder, uri: /file}]", "is a file"),
        ("databases: [{label: data, type: folder, uri: /folder}]", "would hide /mnt/data"),
        ("databases: [{label: tmp, type: other, uri: /file}]", "would hide /mnt/tmp"),
        ("databases: [{label: a, type: sql, uri: 'x://h:1', env: {a: 1}}]", "put it in quotes"),
        ("databases: [{label: a, type: sql, uri: 'x://h:1', env: {a-b: x}}]", "no identifier"),
        ("databases: [{label: a, type: sql, uri: 'x://h:1', env: {a: x, A: y}}]", "differ only in case"),
        ("databases: [{label: a, type: sql}]", "is missing"),
        ("share: {algorithm_logs: some}", "is not one of off, errors, full"),
        ("share: {algorithm_logs: errors, live_logs: true}", "needs algorithm_logs: full"),
        ("share: {algorithm_logs: off, live_logs: true}", "needs algorithm_logs: full"),
        ("algorithm_env: {A-B: x}", "has the name 'A-B'"),
        ("algorithm_env: {OUTPUT_FILE: x}", "sets OUTPUT_FILE, which the node or the image sets itself"),
        ("algorithm_env: {pkg_name: x}", "sets pkg_name"),
        ("algorithm_env: {DEFAULT_DATABASE_URI: x}", "sets DEFAULT_DATABASE_URI"),
        ("algorithm_env: {default_db_param_a: x}", "sets default_db_param_a"),
        ("algorithm_env: {https_proxy: x}", "sets https_proxy"),
        ("algorithm_env: {A: 3}", "put it in quotes"),
        ("algorithm_hosts: {proxyserver: 10.0.0.1}", "has a meaning of its own"),
        ("algorithm_hosts: {a_b: 10.0.0.1}", "which is no host name"),
        ("algorithm_hosts: {db: nowhere}", "gives db no address"),
        ("run_context_file: maybe", "must be true or false"),
        ("policy: {gpu: ['a/b:1']}", "names a tag"),
        ("images: {docker_config: config.json}", "must be an absolute path"),
        ("images: {docker_config: /none/config.json}", "is no file"),
    ],
)
def test_a_fault_says_what_is_wrong_and_what_would_be_right(more: str, part: str, tmp_path: Path) -> None:
    machine = PaperMachine({"/folder": Kind.FOLDER, "/file": Kind.FILE, "/hidden/x": Kind.HIDDEN})
    assert part in fault_of(f"{REST}{more}\n", tmp_path, machine)


@pytest.mark.parametrize(
    "url",
    ["https://u:p@h/api", "https://", "https://h/api?x=1", "https://h/#x", "https://h:port/", "https://a b/"],
)
def test_an_url_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    assert "server.url" in fault_of(REST.replace("https://server.example.org/api", f'"{url}"'), tmp_path)


@pytest.mark.parametrize("rule", ["*", "localhost:5000/x/*", "reg.example.org/a/b", "x@sha256:" + "a" * 64])
def test_patterns_of_images_are_accepted(rule: str, tmp_path: Path) -> None:
    assert load_text(f"{REST}policy: {{algorithms: ['{rule}']}}\n", tmp_path).algorithms == (rule,)


def test_a_number_where_text_belongs_is_told_to_be_quoted(tmp_path: Path) -> None:
    fault = fault_of(REST.replace("name: alpha", "name: 2024-01-01"), tmp_path)
    assert fault == 'name (line 2): "2024-01-01" is not text for YAML; put it in quotes'


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    fault = fault_of(f"{REST}limits: {{cpus: 1}}\nlimits: {{cpus: 2}}\n", tmp_path)
    assert fault == "limits (line 5): stands twice in the same block, again in line 6"


# --- files that are no configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "empty"),
        ("- a\n", "must hold settings"),
        ("a: [\n", "line 2"),
        ("a: {b: ${X}}\n", "needs quotes"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deeply"),
        ("x" * 300_000, "larger than 256 KiB"),
        ("a: &a [1, *a]\n", "nested too deeply"),
        (
            (
                "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
                "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\n"
            ),
            "too many values",
        ),
        ("\x00", "special characters"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_sentence(
    content: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"is not usable") as caught:
        load_text(content, tmp_path)
    assert part in caught.value.message


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "a.yaml", machine=PaperMachine())


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml", machine=PaperMachine())


def test_a_broken_line_with_a_secret_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("api_key: 'hunter2\nname: x\n", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_what_algorithms_get_beyond_the_contract_is_read(tmp_path: Path) -> None:
    settings = load_text(
        REST
        + "policy: {gpu: [registry.example.org/deep/*]}\n"
        + "algorithm_env: {THRESHOLD: '5', API_KEY: hunter2-hunter2}\n"
        + "algorithm_hosts: {db.example.org: 192.0.2.7}\n"
        + "run_context_file: true\n",
        tmp_path,
    )
    assert settings.extras.environment == {"THRESHOLD": "5", "API_KEY": "hunter2-hunter2"}
    assert settings.extras.hosts == {"db.example.org": "192.0.2.7"}
    assert settings.extras.gpu == ("registry.example.org/deep/*",)
    assert settings.extras.run_context
    assert "hunter2" not in repr(settings)
    assert Secret("hunter2-hunter2") in settings.secrets


@pytest.mark.parametrize("word", ["off", "'off'", "OFF", "false"])
def test_the_word_off_is_understood_although_yaml_reads_it_as_false(word: str, tmp_path: Path) -> None:
    assert load_text(REST + f"share: {{algorithm_logs: {word}}}\n", tmp_path).share.algorithm_logs == "off"


def test_a_fault_in_a_variable_for_algorithms_does_not_show_it(tmp_path: Path) -> None:
    fault = fault_of(REST + "algorithm_env: {1A: hunter2}\n", tmp_path, PaperMachine({}))
    assert "hunter2" not in fault


SECRETS_INSIDE = """\
name: alpha
server: {url: "https://server.example.org/api", api_key: "not-a-real-key"}
state_dir: /var/lib/node-agent/alpha
images:
  registries:
    - {host: registry.example.org, username: alpha, password: "not-a-real-password"}
"""


@pytest.mark.parametrize("mode", [0o604, 0o644])
def test_secrets_in_a_file_that_every_user_can_read_are_refused_with_the_command_that_closes_it(
    tmp_path, mode
):
    file = tmp_path / "alpha.yaml"
    file.write_text(SECRETS_INSIDE)
    file.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        load(file)
    faults = "\n".join(refused.value.faults)
    assert "server.api_key (line 2): is a secret in a file that every user of this machine can read" in faults
    assert "images.registries[0].password" in faults
    assert f"chmod o= {file}" in faults
    assert "not-a-real" not in faults


def test_secrets_in_a_file_of_the_owner_and_a_group_are_taken(tmp_path):
    file = tmp_path / "alpha.yaml"
    file.write_text(SECRETS_INSIDE)
    file.chmod(0o640)
    assert load(file).server.api_key.reveal() == "not-a-real-key"


def test_a_file_that_names_its_secrets_by_variables_may_be_open_to_all(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPHA_KEY", "not-a-real-key")
    monkeypatch.setenv("ALPHA_PASSWORD", "not-a-real-password")
    file = tmp_path / "alpha.yaml"
    file.write_text(
        SECRETS_INSIDE.replace("not-a-real-key", "${ALPHA_KEY}").replace(
            "not-a-real-password", "${ALPHA_PASSWORD}"
        )
    )
    file.chmod(0o644)
    assert load(file).server.api_key.reveal() == "not-a-real-key"
