"""What the daemon does without: libraries that only other uses need are not loaded when it starts."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from node_agent import cli

def loaded():
    return sorted(set(json.loads(sys.argv[2])) & set(sys.modules))

class Parts:
    def load(self, path):
        from node_agent.config import load
        return load(path)

    def run(self, settings):
        from node_agent import app
        at_the_start = loaded()
        from node_agent.payload import ciphers
        import rich, charset_normalizer
        print(json.dumps([at_the_start, loaded()]))
        print(json.dumps(whole()))

def whole():
    # what nobody has asked for so far
    import asyncio, docker, gc, idna, socketio, tarfile, werkzeug, werkzeug.wrappers
    from docker import DockerClient, errors
    async def answer():
        return 42
    return [
        asyncio.run(answer()),
        docker.DockerClient is DockerClient and docker.errors is errors,
        idna.encode("straße.example").decode(),
        socketio.AsyncClient.__name__,
        tarfile.TarInfo("x").name,
        werkzeug.Request is werkzeug.wrappers.Request,
        hasattr(docker, "no_such_name"),
        gc.isenabled(),
    ]

sys.exit(cli.main(["run", "-c", sys.argv[1]], parts=Parts()))
"""
HEAVY = [
    "rich",
    "pygments",
    "charset_normalizer",
    "cryptography",
    "pandas",
    "numpy",
    "pyarrow",
    "asyncio.events",
    "docker.models",
    "engineio.server",
    "idna.core",
    "socketio.server",
    "node_agent.sandbox.server",
]
CONFIG = """
name: alpha
server: {{url: "http://127.0.0.1:9/api", api_key_file: "{0}/api.key"}}
state_dir: "{0}/state"
"""


def test_the_daemon_starts_without_what_only_other_uses_need_and_can_still_load_it(tmp_path: Path) -> None:
    (tmp_path / "api.key").write_text("0f8fad5b-d9cb-469f-a165-70867728950e")
    (tmp_path / "api.key").chmod(0o600)
    config = tmp_path / "alpha.yaml"
    config.write_text(CONFIG.format(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(config), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded, whole = map(json.loads, done.stdout.splitlines())
    assert loaded == [[], ["charset_normalizer", "cryptography", "rich"]]
    assert whole == [42, True, "xn--strae-oqa.example", "AsyncClient", "x", True, False, True]
