"""From a vantage6 node's configuration to ours: every key, old shapes, hostile files, and what is said about it."""

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from node_agent import cli
from node_agent.config import ANY_MACHINE, load
from node_agent.config.machine import Kind
from node_agent.config.shape import setting_paths
from node_agent.config.vantage6.draft import Weight
from node_agent.config.vantage6.keys import ROWS, Fate
from node_agent.config.vantage6.moving import RULES, NewConfiguration, convert
from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError

FILES = Path(__file__).parent / "vantage6_files"
ROOT = Path(__file__).parents[2]
FOLDER = Path("/etc/node-agent")
KEY = "0a1b2c3d-0000-4000-8000-00000000beef"
SECRETS = (KEY, "hunter2-token", "hunter2-omop", "hunter2-remote", "hunter2-registry")
REST = f"api_key: {KEY}\nserver_url: https://h.example.org\nport: 443\napi_path: /api\ntask_dir: t\n"


class Site:
    """A machine that has the files of a site."""

    environment: Mapping[str, str] = {}
    user = (1000, 1000)
    last_id = 2**32 - 2
    folders = frozenset({"/srv/data/scans"})
    files = frozenset(
        {
            "/srv/data/patients.csv",
            "/srv/data/local.sqlite",
            "/srv/data/linked.parquet",
            "/srv/certs/house.pem",
            "/srv/keys/organization.pem",
            "/srv/keys/tunnel",
        }
    )

    def kind(self, path: Path) -> Kind:
        if str(path) in self.folders:
            return Kind.FOLDER
        return Kind.FILE if str(path) in self.files else Kind.MISSING

    def read_secret(self, path: Path) -> Secret:
        if str(path) not in self.files:
            raise ValueError("is missing")
        return Secret("x")


def moved(text: str, tmp_path: Path, **options: Any) -> NewConfiguration:
    file = tmp_path / "alpha.yaml"
    file.write_text(text, encoding="utf-8")
    return convert(file, machine=Site(), **options)


def settings_of(new: NewConfiguration) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(new.written)
    return found


def texts(new: NewConfiguration, weight: Weight) -> list[str]:
    return [str(finding) for finding in new.findings if finding.weight is weight]


@pytest.fixture(scope="module")
def full() -> NewConfiguration:
    return convert(FILES / "full.yaml", machine=Site())


# --- every key -------------------------------------------------------------------------------------------------


def test_the_full_example_becomes_a_configuration_that_loads(full: NewConfiguration) -> None:
    assert full.faults == ()
    assert texts(full, Weight.MUST) == []


def leaves(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from leaves(inner, f"{key}[]")
    else:
        yield key


def test_the_full_example_uses_every_key_of_the_table() -> None:
    used = set(leaves(yaml.safe_load((FILES / "full.yaml").read_text(encoding="utf-8"))))
    missing = {
        row.key for row in ROWS if not any(key == row.key or key.startswith(f"{row.key}") for key in used)
    }
    assert missing == {"allowed_images"}  # of version 3


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", "full"),
        ("server.url", "https://server.example.org:7601/api"),
        ("server.api_key_file", "/etc/node-agent/full.key"),
        ("server.ca_bundle", "/srv/certs/house.pem"),
        ("state_dir", "/var/lib/node-agent/full"),
        ("databases.0", {"label": "default", "type": "csv", "uri": "/srv/data/patients.csv"}),
        ("databases.1.type", "folder"),
        ("databases.2.type", "sqlite"),
        ("databases.3.uri", "jdbc:postgresql://my-database:5432/omop"),
        ("databases.3.env", {"user": "reader", "password": "hunter2-omop", "cdm_schema": "public"}),
        ("databases.4.uri", "postgresql://reader:hunter2-remote@far-server:8000/db"),
        ("policy.algorithms", ["registry.example.org/project/mean", "registry.example.org/approved/*"]),
        ("policy.algorithm_stores", ["https://store.example.org/api"]),
        ("policy.combine", "either"),
        ("policy.users", [2]),
        ("policy.organizations", [6, "Hospital North"]),
        ("policy.basics_algorithm", False),
        ("policy.gpu", ["registry.example.org/project/mean", "registry.example.org/approved/*"]),
        ("encryption.private_key", "/srv/keys/organization.pem"),
        ("images.pull", "missing"),
        ("images.registries.0.host", "registry.example.org"),
        ("images.registries.0.username", "puller"),
        ("images.registries.0.password_file", "/etc/node-agent/full.registry-0"),
        ("services.0", {"name": "my-database", "container": "postgres-container"}),
        ("services.1.name", "far-server"),
        ("services.1.tunnel.host", "gate.example.org"),
        ("services.1.tunnel.port", 2222),
        ("services.1.tunnel.user", "tunnel"),
        ("services.1.tunnel.key_file", "/srv/keys/tunnel"),
        (
            "services.1.tunnel.host_key",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJKWYtTBWkZ0yd0iVrJXqZJqvUzPpUs4ZSVuJkpVyvwK",
        ),
        ("services.1.tunnel.target", "127.0.0.1:5432"),
        ("algorithm_env", {"CITY": "Utrecht", "API_TOKEN": "hunter2-token"}),
        ("run_context_file", True),
        ("share", {"node_facts": False, "algorithm_logs": "full", "live_logs": True}),
        ("logging.level", "error"),
    ],
)
def test_each_key_arrives_where_the_table_says(place: str, value: Any, full: NewConfiguration) -> None:
    found: Any = settings_of(full)
    for part in place.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == value


def test_every_host_of_the_whitelist_is_named_with_every_port(full: NewConfiguration) -> None:
    hosts = ["example.org", "*.example.org", "pypi.example.net", "192.0.2.7", "198.51.100.0/24"]
    assert settings_of(full)["egress"]["allow"] == [
        f"{host}:{port}" for host in hosts for port in (443, 8000)
    ]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.fate is Fate.NOT_SUPPORTED], ids=lambda row: row.key
)
def test_what_is_not_supported_is_said_with_the_words_of_the_table(row: Any, full: NewConfiguration) -> None:
    assert f"{row.key}: {row.text}" in texts(full, Weight.LOST)


def spoken(new: NewConfiguration) -> str:
    """Give the comments as one text, without their line breaks."""
    return re.sub(r"\n\s*#\s*", " ", new.shown)


@pytest.mark.parametrize("row", [row for row in ROWS if row.fate is Fate.NOT_NEEDED], ids=lambda row: row.key)
def test_what_is_not_needed_any_more_is_a_comment_in_the_file(row: Any, full: NewConfiguration) -> None:
    key = row.key.replace("[]", "")
    said = [str(found) for found in full.findings if re.sub(r"\[[0-9]+\]", "", found.old).startswith(key)]
    assert said
    assert all(text.partition(": ")[2] in spoken(full) for text in said)


def test_a_tag_is_kept_out_and_what_to_write_stands_beside_it(full: NewConfiguration) -> None:
    assert any(
        "registry.example.org/project/sum:1.0 is not carried over" in text
        for text in texts(full, Weight.DECIDE)
    )
    assert "#   - registry.example.org/project/sum   # every version: more than before" in full.written


def test_a_variable_that_the_contract_sets_is_left_out(full: NewConfiguration) -> None:
    assert any(text.startswith("algorithm_env.INPUT_FILE:") for text in texts(full, Weight.CHANGED))


def test_findings_come_in_the_order_of_their_importance(full: NewConfiguration) -> None:
    order = [list(Weight).index(finding.weight) for finding in full.findings]
    assert order == sorted(order)


def test_every_key_has_a_rule_or_needs_none() -> None:
    carried = {key for _, keys in RULES for key in keys}
    needed = {row.key for row in ROWS if row.fate in {Fate.SAME, Fate.REPLACED}}
    assert needed <= carried
    assert carried <= {row.key for row in ROWS}


def test_every_setting_the_table_names_exists() -> None:
    paths = setting_paths()
    for row in ROWS:
        assert not row.here or any(
            path == row.here or path.startswith((f"{row.here}.", f"{row.here}[]")) for path in paths
        )


# --- other shapes ----------------------------------------------------------------------------------------------


def test_a_node_without_policy_lets_nothing_run_until_its_owner_says_what(tmp_path: Path) -> None:
    new = convert(FILES / "wizard.yaml", machine=Site())
    assert new.faults == ()
    assert settings_of(new)["policy"] == {"algorithms": []}
    assert any("everybody's code was allowed" in text for text in texts(new, Weight.DECIDE))
    assert settings_of(new)["server"]["url"] == "https://server.example.org/api"
    assert settings_of(new)["logging"] == {"level": "info"}


def test_a_file_of_version_3_is_read(tmp_path: Path) -> None:
    new = convert(FILES / "version3.yaml", machine=Site())
    assert new.faults == ()
    assert settings_of(new)["databases"] == [
        {"label": "default", "type": "csv", "uri": "/srv/data/patients.csv"},
        {"label": "linked", "type": "parquet", "uri": "/srv/data/linked.parquet"},
    ]
    assert settings_of(new)["policy"]["algorithms"] == ["registry.example.org/approved/*"]
    assert not any("no key of a vantage6 node" in str(finding) for finding in new.findings)


def test_a_tunnel_one_level_too_deep_is_found(tmp_path: Path) -> None:
    tunnel = (
        "{hostname: far, ssh: {host: g.org, tunnel: {bind: {port: 1}, dest: {ip: 127.0.0.1, port: 5432}}}}"
    )
    new = moved(f"{REST}ssh-tunnels: [{tunnel}]\n", tmp_path)
    assert settings_of(new)["services"][0]["tunnel"]["target"] == "127.0.0.1:5432"
    assert not any("no key of a vantage6 node" in str(finding) for finding in new.findings)


def test_one_of_several_environments_has_to_be_chosen(tmp_path: Path) -> None:
    inner = REST.replace("\n", "\n    ")
    text = f"environments:\n  dev:\n    {inner}\n  prod:\n    {inner.replace('h.example', 'p.example')}\n"
    with pytest.raises(ConfigError, match="several environments: prod, dev") as caught:
        moved(text, tmp_path)
    assert "--environment" in caught.value.hint
    new = moved(text, tmp_path, environment="prod")
    assert settings_of(new)["server"]["url"] == "https://p.example.org/api"
    with pytest.raises(ConfigError, match="no environment acc"):
        moved(text, tmp_path, environment="acc")


def test_merge_keys_stand_for_what_they_name(tmp_path: Path) -> None:
    text = "base: &base {port: 5000, api_path: /api}\napplication:\n  <<: *base\n  port: 443\n"
    text += f"  api_key: {KEY}\n  server_url: https://h.example.org\n"
    assert settings_of(moved(text, tmp_path))["server"]["url"] == "https://h.example.org/api"


@pytest.mark.parametrize(
    ("given", "name"), [("Alpha Node_1", "alpha-node-1"), ("--", "node"), ("x" * 60, "x" * 41), ("é", "node")]
)
def test_any_name_becomes_one_of_ours(given: str, name: str, tmp_path: Path) -> None:
    assert moved(REST, tmp_path, name=given).name == name


@pytest.mark.parametrize(
    ("parts", "url"),
    [
        ("server_url: https://h.org\nport: 443\napi_path: /api", "https://h.org/api"),
        ("server_url: http://h.org\nport: 5000\napi_path: ''", "http://h.org:5000"),
        ("server_url: https://h.org/\nport: null\napi_path: api", "https://h.org/api"),
        ("server_url: https://h.org:8443\nport: 443\napi_path: /api", "https://h.org:8443/api"),
        ("server_url: https://h.org:8443\nport: 5000\napi_path: /api", "https://h.org:8443/api"),
        ("server_url: http://host.docker.internal\nport: 7601\napi_path: /api", "http://localhost:7601/api"),
        ("server_url: h.org\nport: 443\napi_path: /api", "https://h.org/api"),
    ],
)
def test_the_parts_of_the_address_are_put_together(parts: str, url: str, tmp_path: Path) -> None:
    assert settings_of(moved(f"api_key: {KEY}\n{parts}\n", tmp_path))["server"]["url"] == url


@pytest.mark.parametrize(
    ("database", "part"),
    [
        (r"{label: a, type: csv, uri: 'C:\data\a.csv'}", "databases[0].uri"),
        ("{label: a, type: csv, uri: data/a.csv}", "databases[0].uri"),
        ("{label: a, type: csv, uri: /srv/none.csv}", "does not exist"),
        ("{label: 1a, type: csv, uri: /srv/data/patients.csv}", "is not an identifier"),
        ("{label: a, type: duckdb, uri: /srv/data/patients.csv}", "is not one of"),
        ("{uri: /srv/data/patients.csv, type: csv}", "no label or no uri"),
        ("{label: a, uri: /srv/data/patients.csv}", "databases[0].type: is missing"),
        ("just text", "is not a block of settings"),
    ],
)
def test_a_database_that_cannot_be_carried_over_must_be_corrected(
    database: str, part: str, tmp_path: Path
) -> None:
    new = moved(f"{REST}databases:\n- {database}\n", tmp_path)
    assert any(part in text for text in texts(new, Weight.MUST))


@pytest.mark.parametrize(
    ("more", "weight", "part"),
    [
        (
            "databases: [{label: a, type: folder, uri: /srv/data/scans}]",
            Weight.CHANGED,
            "here a folder is read-only",
        ),
        ("encryption: {enabled: true}", Weight.MUST, "private_key.pem"),
        ("encryption: {enabled: true, private_key: mine.pem}", Weight.MUST, "mine.pem"),
        ("encryption: {enabled: 'yes'}", Weight.MUST, "is not true or false"),
        ("policies: {allowed_users: [2]}", Weight.CHANGED, "as a number never matched"),
        ("policies: {allowed_users: [alice]}", Weight.DECIDE, "is a name"),
        (
            "policies: {allowed_users: ['2'], allowed_organizations: ['3']}",
            Weight.CHANGED,
            "here both must allow",
        ),
        (
            "policies: {allowed_algorithms: x.org/y, allow_either_whitelist_or_store: true}",
            Weight.CHANGED,
            "here that one list decides",
        ),
        ("policies: {require_algorithm_pull: false}", Weight.CHANGED, "fell back"),
        ("algorithm_device_requests: {gpu: true}", Weight.DECIDE, "only the images named"),
        ("whitelist: {domains: [host.docker.internal], ports: [443]}", Weight.DECIDE, "is this machine"),
        ("whitelist: {domains: ['*.x.org'], ports: [443]}", Weight.DECIDE, "did not know `*`"),
        ("whitelist: {ips: ['::1'], ports: [443]}", Weight.DECIDE, "IPv6"),
        ("whitelist: {ips: [nonsense], ports: [443]}", Weight.DECIDE, "no IPv4 address"),
        ("whitelist: {ips: [0.0.0.0/0], ports: [443]}", Weight.DECIDE, "opens too much"),
        ("whitelist: {domains: [x.org], ports: [https]}", Weight.DECIDE, "names no port"),
        ("docker_services: {db: c}", Weight.DECIDE, "none does"),
        ("docker_registries: [{registry: x.org, username: u}]", Weight.DECIDE, "no password"),
        (
            "docker_registries: [{registry: 'https://x.org/v1/', username: u, password: p}]",
            Weight.CHANGED,
            "host alone",
        ),
        ("node_extra_env: {HTTPS_PROXY: 'http://p:1'}", Weight.DECIDE, "belongs to the service"),
        ("node_extra_hosts: {a.org: 192.0.2.1}", Weight.DECIDE, "/etc/hosts: 192.0.2.1 a.org"),
        ("algorithm_env: {a-b: x}", Weight.DECIDE, "no identifier"),
        ("logging: {level: NOTSET}", Weight.NOTE, "was NOTSET"),
        ("colour: blue", Weight.NOTE, "is no key of a vantage6 node"),
        ("prometheus: {enabled: false}", Weight.NOTE, "no metrics"),
        ("databases: null", Weight.DECIDE, "runs that ask for data will fail"),
        ("ssh-tunnels: [{ssh: {host: x}}]", Weight.MUST, "no hostname"),
        (
            "ssh-tunnels: [{hostname: x, ssh: {fingerprint: 'ssh-rsa ...'}}]",
            Weight.MUST,
            "no key of a machine",
        ),
    ],
)
def test_what_changes_is_said_with_its_weight(more: str, weight: Weight, part: str, tmp_path: Path) -> None:
    assert any(part in text for text in texts(moved(f"{REST}{more}\n", tmp_path), weight))


def test_empty_lists_of_people_meant_everybody_and_are_left_out(tmp_path: Path) -> None:
    new = moved(f"{REST}policies: {{allowed_algorithms: [x.org/y], allowed_users: []}}\n", tmp_path)
    assert settings_of(new)["policy"] == {"algorithms": ["x.org/y"]}


# --- secrets ---------------------------------------------------------------------------------------------------


def test_what_is_shown_holds_no_secret(full: NewConfiguration) -> None:
    everything = full.shown + repr(full) + "".join(map(str, full.findings))
    assert not any(secret in everything for secret in SECRETS)


def test_what_is_shown_loads_once_the_variables_are_set(full: NewConfiguration, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(full.shown, encoding="utf-8")
    machine = type(ANY_MACHINE)()
    names = re.findall(r"\$\{(\w+)\}", full.shown)
    machine.environment = dict.fromkeys(names, "https://u:p@h.example.org/x")
    assert load(file, machine=machine).name == "full"
    assert len(names) == len(set(names)) == len(SECRETS)


def test_key_and_passwords_move_into_files_for_their_owner_only(tmp_path: Path) -> None:
    out = tmp_path / "alpha.yaml"
    assert cli.main(["config", "import-vantage6", str(FILES / "full.yaml"), "--out", str(out)]) == 1
    files = {path.name: path for path in tmp_path.iterdir()}
    assert set(files) == {"alpha.yaml", "full.key", "full.registry-0"}
    assert files["full.key"].read_text() == f"{KEY}\n"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    assert KEY not in out.read_text()


def test_nothing_is_overwritten_unless_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "alpha.yaml"
    (tmp_path / "wizard.key").write_text("older")
    command = ["config", "import-vantage6", str(FILES / "wizard.yaml"), "--out", str(out)]
    assert cli.main(command) == 78
    assert not out.exists()
    assert "--force" in capsys.readouterr().err
    cli.main([*command, "--force"])
    assert (tmp_path / "wizard.key").read_text() == f"{KEY}\n"


def test_the_answer_for_programs_holds_everything_but_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["config", "import-vantage6", str(FILES / "full.yaml"), "--json"])
    shown = capsys.readouterr().out
    answer = yaml.safe_load(shown)
    assert answer["name"] == "full"
    assert {"weight", "old", "line", "setting", "text"} == set(answer["findings"][0])
    assert not any(secret in shown for secret in SECRETS)


# --- hostile files ---------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"[1, 2]", "must hold settings"),
        (b"a: 1", "no configuration of a vantage6 node"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: [", "line"),
        (b"x: " + b"a" * 300_000, "larger than"),
        (BOMB.encode(), "too many values"),
        (b"a: &a [*a]", "too many values, or is nested"),
        (b"[" * 1000, "nested too deeply"),
        (b"api_key: a\napi_key: b\n", "faults"),
        (b"!!python/object/apply:os.system [id]", "must hold settings"),
    ],
)
def test_a_file_that_is_not_usable_is_refused_with_its_reason(
    content: bytes, part: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(part)):
        convert(file)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        convert(tmp_path / "none.yaml")


WRONG: tuple[str, ...] = (
    "null",
    "[]",
    "{}",
    "[[1]]",
    "{x: {y: 1}}",
    "3",
    "2.5",
    "true",
    "2020-01-01",
    "text",
    "''",
    "[null, {}, [], 1]",
)


def grown(key: str, value: Any, tree: Any) -> Any:
    """Put *value* at the place of *key* into *tree*."""
    part, _, rest = re.match(r"(\[\]|[^.\[\]]+)(\.?)(.*)", key).groups()  # type: ignore[union-attr]
    if part == "[]":
        return [
            grown(rest.lstrip("."), value, tree[0] if isinstance(tree, list) and tree else {})
            if rest
            else value
        ]
    tree = tree if isinstance(tree, dict) else {}
    return {**tree, part: grown(rest, value, tree.get(part)) if rest else value}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("depth", ["top", "deep"])
def test_no_kind_of_value_is_a_surprise_anywhere(depth: str, value: str, tmp_path: Path) -> None:
    keys = [row.key for row in ROWS]
    if depth == "top":
        keys = sorted({key.partition("[")[0].partition(".")[0] for key in keys})
    tree: Any = {}
    for key in keys:
        tree = grown(key, yaml.safe_load(value), tree)
    yaml.safe_load(moved(yaml.safe_dump({**tree, "server_url": "https://h.example.org"}), tmp_path).written)


def test_a_wrong_value_leaves_what_stands_beside_it_alone(tmp_path: Path) -> None:
    new = moved(f"{REST}databases: 3\npolicies: [1]\nwhitelist: x\nencryption: []\n", tmp_path)
    assert settings_of(new)["server"]["url"] == "https://h.example.org/api"
    assert {text.partition(":")[0] for text in texts(new, Weight.MUST)} >= {"databases", "whitelist"}


def test_no_text_ends_a_comment_or_steers_a_terminal(tmp_path: Path) -> None:
    evil = "x\\nname: evil\\u2028name: evil\\x85\\e[2J"
    new = moved(
        f'{REST}"{evil}": 1\npolicies: {{allowed_algorithms: ["{evil}"], allowed_users: ["{evil}"]}}\n',
        tmp_path,
    )
    assert settings_of(new)["name"] == "alpha"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", new.written)


def test_a_dollar_sign_stays_one(tmp_path: Path) -> None:
    new = moved(f"{REST}algorithm_env: {{A: '${{HOME}} $${{x}}'}}\n", tmp_path)
    file = tmp_path / "new.yaml"
    file.write_text(new.written, encoding="utf-8")
    assert load(file, machine=ANY_MACHINE).extras.environment["A"] == "${HOME} $${x}"


def test_a_whitelist_that_would_never_end_is_cut(tmp_path: Path) -> None:
    hosts = ", ".join(f"h{n}.org" for n in range(200))
    new = moved(f"{REST}whitelist: {{domains: [{hosts}], ports: [1, 2, 3, 4, 5]}}\n", tmp_path)
    assert len(settings_of(new)["egress"]["allow"]) == 500
    assert any("1000 ways out" in text for text in texts(new, Weight.DECIDE))


# --- old settings in a configuration of ours --------------------------------------------------------------------

OURS = "name: alpha\nserver: {url: https://h.org/api, api_key: k}\nstate_dir: /s\n"


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("policies: {allowed_users: [1]}", "here it is said with policy"),
        ("whitelist: {ports: [1]}", "here it is said with egress.allow"),
        ("docker_services: {a: b}", "here it is said with services"),
        ("ssh-tunnels: []", "here it is said with services"),
        ("vpn_subnet: 10.0.0.0/8", "around the isolation of every run"),
        ("prometheus: {enabled: true}", "no metrics are sent"),
        ("encryption: {enabled: true}", "here it is said with encryption.private_key"),
        ("images: {node: x}", "is installed, not pulled"),
        ("logging: {use_console: true}", "goes to standard error"),
        ("databases: [{label: a, type: sql, uri: 'x://h:1', mount_mode: ro}]", "always mounted in place"),
        ("policy: {allowed_algorithms: []}", "here it is said with policy.algorithms"),
        ("share_algorithm_logs: true", "here it is said with share.algorithm_logs"),
        ("node_extra_hosts: {}", "/etc/hosts"),
        ("debug: {socketio: true}", "logging.level: debug"),
        ("allowed_images: []", "here it is said with policy.algorithms"),
    ],
)
def test_an_old_setting_in_a_new_file_is_told_where_it_is_now(more: str, part: str, tmp_path: Path) -> None:
    file = tmp_path / "alpha.yaml"
    file.write_text(OURS + more, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, machine=Site())
    assert any(part in fault for fault in caught.value.faults)


def test_an_old_file_is_told_how_it_becomes_a_new_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load(FILES / "wizard.yaml", machine=Site())
    assert "node-agent config import-vantage6" in caught.value.hint


# --- what is written for people --------------------------------------------------------------------------------


def test_the_documentation_has_the_table_of_the_program() -> None:
    text = (ROOT / "docs" / "moving-over.md").read_text(encoding="utf-8")
    rows = [
        f"| `{row.key}` | {row.fate} | {f'`{row.here}`' if row.here else '-'} | {row.text} |" for row in ROWS
    ]
    section = text.partition("## Configuration")[2].partition("\n## ")[0].partition("### Regular")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows


def test_the_documentation_names_only_commands_there_are() -> None:
    text = (ROOT / "docs" / "moving-over.md").read_text(encoding="utf-8")
    for words in re.findall(r"`node-agent ([a-z]+)(?: ([a-z][a-z0-9-]*))?", text):
        group: Any = cli.commands
        for word in filter(None, words):
            assert word in group.commands
            group = group.commands[word]
            if not hasattr(group, "commands"):
                break
